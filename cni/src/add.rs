//! ADD: attaches a pod.

use rscni_types::types::{CNIResult, Interface, IpConfig, Route};

use ipnet::IpNet;

use crate::agent::{Agent, Allocation};
use crate::config::Config;
use crate::error::CniError;
use crate::note;
use crate::pod::{Ends, Pair, everything, is_host_side};
use crate::request::Target;
use crate::step::Step;

/// Attaches `target` and returns what to print. On an error everything is undone, in reverse.
pub(crate) async fn add(
    target: &Target,
    config: &Config,
    warnings: &mut Vec<String>,
) -> Result<CNIResult, CniError> {
    let netns = target.netns.clone().unwrap_or_default();
    let ends = Ends::open(&netns)?;
    // Before anything is asked for: what is there belongs to an attachment that lives, and must not be undone.
    if ends.pod.link(&target.ifname).await?.is_some() {
        return Err(CniError::InterfaceExists { ifname: target.ifname.clone(), netns });
    }
    // A note of an earlier DEL would take away what is about to be given.
    note::remove(&config.state_dir, target)?;
    let agent = Agent::new(&config.agent_socket);

    Step::Allocate.begins();
    let result = match agent.allocate(target, &config.network).await {
        Ok(allocation) => match build(target, &ends, &agent, &allocation).await {
            Ok(pair) => Ok(result(target, config, &pair, &allocation)),
            Err(error) => {
                // An address whose pair cannot be removed stays taken until the DEL that follows.
                match delete_pair(&ends, target).await {
                    Ok(()) => release(target, config, &agent, warnings).await,
                    Err(error) => warnings.push(format!("undoing: {error}")),
                }
                Err(error)
            }
        },
        Err(error) => {
            // The agent may have journalled it and died before it answered.
            release(target, config, &agent, warnings).await;
            Err(error)
        }
    };
    Step::Print.begins();
    result
}

/// Everything between the allocation and the result.
async fn build(
    target: &Target,
    ends: &Ends,
    agent: &Agent,
    allocation: &Allocation,
) -> Result<Pair, CniError> {
    Step::CreateVeth.begins();
    let mut pair = ends.create(&target.ifname, allocation).await?;
    Step::ConfigurePod.begins();
    pair.metric = ends.configure_pod(&pair, allocation).await?;
    Step::ConfigureHost.begins();
    ends.configure_host(&pair, allocation).await?;
    Step::Attach.begins();
    agent.attach(target, pair.host.index, pair.pod_mac, pair.host_mac).await?;
    Ok(pair)
}

/// Routes and neighbours go with the devices.
async fn delete_pair(ends: &Ends, target: &Target) -> Result<(), CniError> {
    if let Some(pod) = ends.pod.link(&target.ifname).await? {
        ends.delete_source_rules(pod.index).await?;
    }
    let link = ends.node.link(&target.host_interface()).await?;
    if let Some(link) = link.filter(|link| is_host_side(link, target)) {
        ends.node.delete_link_by_index(link.index).await?;
    }
    Ok(())
}

async fn release(target: &Target, config: &Config, agent: &Agent, warnings: &mut Vec<String>) {
    if let Err(error) = agent.release(target).await {
        warnings.push(format!("undoing: {error}"));
        if let Err(error) = note::write(&config.state_dir, target) {
            warnings.push(format!("undoing: {error}"));
        }
    }
}

fn result(target: &Target, config: &Config, pair: &Pair, allocation: &Allocation) -> CNIResult {
    let interface = |name: &str, mac: String, sandbox: String| Interface {
        name: name.to_owned(),
        mac,
        mtu: Some(allocation.mtu),
        sandbox: Some(sandbox),
        socket_path: None,
        pci_id: None,
    };
    let sandbox = target.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    CNIResult {
        interfaces: vec![
            interface(&pair.host.name, pair.host_mac.to_string(), String::new()),
            interface(&target.ifname, pair.pod_mac.to_string(), sandbox),
        ],
        ips: vec![IpConfig {
            interface: Some(1),
            address: IpNet::from(allocation.address),
            gateway: Some(allocation.gateway),
        }],
        routes: vec![Route {
            dst: everything(allocation.gateway),
            gw: Some(allocation.gateway),
            mtu: None,
            advmss: None,
            priority: Some(pair.metric).filter(|metric| *metric != 0),
            table: None,
            scope: None,
        }],
        dns: config.dns.clone(),
    }
}
