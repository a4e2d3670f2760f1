//! DEL: detaches a pod, as far as it is attached. Everything that is already gone is success.

use host::netlink::Netlink;

use crate::agent::Agent;
use crate::config::Config;
use crate::error::CniError;
use crate::note;
use crate::pod::{Ends, is_host_side};
use crate::request::Target;
use crate::step::Step;

/// Detaches `target`. If the agent is away it finds a note instead, and DEL still succeeds.
pub(crate) async fn del(
    target: &Target,
    config: &Config,
    warnings: &mut Vec<String>,
) -> Result<(), CniError> {
    Step::DeleteVeth.begins();
    // First the devices, then the address: it must not be given to another pod while this one can still use it. So a kernel that
    // refuses is an error, and the runtime tries again.
    delete_pair(target).await?;
    Step::Release.begins();
    release(target, config, warnings).await?;
    Step::Deleted.begins();
    Ok(())
}

async fn release(target: &Target, config: &Config, warnings: &mut Vec<String>) -> Result<(), CniError> {
    let agent = Agent::new(&config.agent_socket);
    match agent.release(target).await {
        Ok(()) => return note::remove(&config.state_dir, target),
        Err(error @ (CniError::AgentUnreachable { .. } | CniError::TryAgain { .. })) => {
            warnings.push(format!("{error}; left a note for it"))
        }
        Err(error) => return Err(error),
    }
    note::write(&config.state_dir, target)?;
    // An agent that started meanwhile may have read the notes before this one was there.
    if agent.release(target).await.is_ok() {
        note::remove(&config.state_dir, target)?;
    }
    Ok(())
}

/// Removes the pair by its end in the pod, or by the name that every pair of this attachment has.
async fn delete_pair(target: &Target) -> Result<(), CniError> {
    if let Some(netns) = &target.netns {
        match Ends::open(netns) {
            Ok(ends) => {
                if let Some((pod, host)) = ends.find(target).await? {
                    ends.delete_source_rules(pod.index).await?;
                    ends.node.delete_link_by_index(host.index).await?;
                }
            }
            // With the namespace its devices went, unless something still holds it.
            Err(CniError::NetNs(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let node = Netlink::connect()?;
    let left = node.link(&target.host_interface()).await?;
    if let Some(link) = left.filter(|link| is_host_side(link, target)) {
        node.delete_link_by_index(link.index).await?;
    }
    Ok(())
}
