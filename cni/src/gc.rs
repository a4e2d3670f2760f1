//! GC: releases what the runtime no longer knows of.

use std::collections::HashSet;

use rscni_types::types::GcAttachment;

use crate::agent::Agent;
use crate::config::Config;
use crate::error::CniError;

/// Releases every attachment of this network that is not in `valid`, and reports at the end which
/// it could not. One by one: between two of them the agent serves others.
pub(crate) async fn gc(
    config: &Config,
    valid: &[GcAttachment],
    warnings: &mut Vec<String>,
) -> Result<(), CniError> {
    let agent = Agent::new(&config.agent_socket);
    let valid: HashSet<(&str, &str)> =
        valid.iter().map(|kept| (kept.container_id.as_str(), kept.ifname.as_str())).collect();
    let mut known = agent.attachments(&config.network).await?;
    known.retain(|known| !valid.contains(&(known.container_id.as_str(), known.interface.as_str())));
    let wanted = known.len();
    let mut failed = Vec::new();
    for attachment in known {
        let name = format!("container {} interface {}", attachment.container_id, attachment.interface);
        match agent.release_attachment(attachment).await {
            Ok(()) => warnings.push(format!("GC released {name} of network {}", config.network)),
            // The others would wait for an answer as long.
            Err(error @ CniError::AgentUnreachable { .. }) => return Err(error),
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(CniError::Gc { wanted, failed }) }
}
