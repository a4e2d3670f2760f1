//! CHECK: what an attachment has lost of all that serves it.

use std::net::IpAddr;

use datapath::{Attachment, Program};
use host::netlink::{Link, Mac};
use tokio::task::block_in_place;

use super::Reconciler;
use super::cni::CniError;
use crate::journal::{Allocation, AttachmentKey, Veth};
use crate::node::{NodeNetwork, PodLink};
use crate::source::Source;

/// What the plugin finds of an attachment.
#[derive(Debug)]
pub struct CheckRequest {
    /// Which.
    pub key: AttachmentKey,
    /// Its veth.
    pub veth: Veth,
    /// Its addresses, by the result of the ADD.
    pub addresses: Vec<IpAddr>,
}

impl<S: Source> Reconciler<S> {
    /// Everything that is lost, so that one CHECK tells all. What the next look would repair is
    /// lost until then.
    pub(super) async fn check(&mut self, request: CheckRequest) -> Result<Vec<String>, CniError> {
        let Some(network) = &self.network else { return Err(self.not_ready()) };
        let Some(known) = self.journal.contents().allocations.get(&request.key) else {
            return Ok(vec![format!(
                "mesh-agent has no record of {}: its address is not reserved",
                request.key
            )]);
        };
        let mut lost = of_record(known, &request);
        let Some(veth) = known.veth else { return Ok(lost) };
        let link = network.link(&known.host_interface).await?;
        lost.extend(of_device(known, &veth, link.as_ref()));
        lost.extend(block_in_place(|| self.lost_programs(network, &known.host_interface))?);
        let in_maps = block_in_place(|| self.installed.lost_of(known.address, &self.datapath.maps))?;
        let pod = PodLink {
            device: known.host_interface.clone(),
            index: veth.host_ifindex,
            address: known.address,
            mac: Mac(veth.pod_mac),
        };
        lost.extend(network.lost_ways(&pod).await?);
        if !in_maps.is_empty() {
            // Only a comparison with what the maps hold now writes it again.
            self.read_maps_again();
            self.stale = true;
        }
        lost.extend(in_maps);
        if !lost.is_empty() {
            tracing::warn!(key = %request.key, lost = lost.join("; "), "CHECK of the container runtime fails");
        }
        Ok(lost)
    }

    /// Programs of the pod and of the node.
    fn lost_programs(&self, network: &NodeNetwork, device: &str) -> Result<Vec<String>, datapath::Error> {
        let mut wanted = vec![
            (device, Program::FromPod),
            (device, Program::ToPod),
            (&network.uplink.name, Program::FromUplink),
            (Attachment::NETWORK_NAMESPACE, Program::PickListener),
        ];
        wanted.extend(network.tunnel.iter().map(|tunnel| (tunnel.name.as_str(), Program::FromTunnel)));
        let mut lost = Vec::new();
        for (device, program) in wanted {
            let attachment = Attachment { device: device.to_owned(), program };
            if !self.datapath.is_attached(&attachment)? {
                lost.push(format!("program {} is not attached to {device}", program.name()));
            }
        }
        Ok(lost)
    }
}

/// What the journal says against the result of the ADD and the devices.
fn of_record(known: &Allocation, request: &CheckRequest) -> Vec<String> {
    let key = &known.key;
    let mut lost = Vec::new();
    if request.addresses != [known.address] {
        lost.push(format!(
            "mesh-agent has recorded {} for {key}, not {:?}",
            known.address, request.addresses
        ));
    }
    match &known.veth {
        None => lost.push(format!("mesh-agent has recorded an address for {key} but attached no device")),
        Some(veth) if *veth != request.veth => lost.push(format!(
            "mesh-agent has recorded device {} and {} for {key}, not {} and {}",
            veth.host_ifindex,
            Mac(veth.pod_mac),
            request.veth.host_ifindex,
            Mac(request.veth.pod_mac)
        )),
        Some(_) => {}
    }
    lost
}

fn of_device(known: &Allocation, veth: &Veth, link: Option<&Link>) -> Option<String> {
    let name = &known.host_interface;
    match link {
        None => Some(format!("device {name} is missing")),
        Some(link) if link.index != veth.host_ifindex => {
            Some(format!("device {name} has number {}, not {}", link.index, veth.host_ifindex))
        }
        Some(link) if !link.up => Some(format!("device {name} is down")),
        Some(_) => None,
    }
}
