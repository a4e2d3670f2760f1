//! Queueing disciplines of devices (tc(8)).

use std::collections::BTreeSet;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcMessage};

use super::{Netlink, NetlinkError};

/// What the kernel gives to a device without queues, such as a veth.
const NO_QUEUE: &str = "noqueue";

impl Netlink {
    /// Numbers of the devices on which something other than the kernel's `noqueue` works, in either
    /// direction: `tbf` or another limit on the way out, `ingress` or `clsact` on the way in.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn devices_with_queues(&self) -> Result<BTreeSet<u32>, NetlinkError> {
        let found = self.list(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())).await;
        let found = found.map_err(NetlinkError::refused("list", "queueing disciplines"))?;
        Ok(found.iter().filter_map(device_with_queue).collect())
    }
}

fn device_with_queue(message: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = message else { return None };
    let is_kind = |attribute: &&TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind != NO_QUEUE);
    message.attributes.iter().find(is_kind)?;
    u32::try_from(message.header.index).ok()
}
