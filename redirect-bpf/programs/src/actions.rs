//! What the kernel shall do with a packet that was decided.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_check_mtu, bpf_redirect, bpf_redirect_peer, bpf_skb_change_head};
use aya_ebpf::programs::TcContext;
use layout::{Config, Endpoint, Reason, mark};

use crate::packet::{ETHERNET, ETHERTYPE_IPV4, skb};

/// Drop.
pub(crate) const DROP: i32 = TC_ACT_SHOT;
/// Go on in the stack, after the other programs of the hook.
pub(crate) const NEXT: i32 = -1;
/// Go on in the stack at once: no later program may change a mark that steers.
const PASS: i32 = TC_ACT_OK;

/// `bpf_check_mtu` compares each segment of a packet that the kernel has yet to cut.
const BPF_MTU_CHK_SEGS: u64 = 1;

/// Sets our bits of the mark and leaves the others to who uses them.
#[inline(always)]
fn set_mark(ctx: &TcContext, value: u32) {
    ctx.set_mark(skb(ctx).mark & !mark::MASK | value);
}

/// To the proxy: the policy route for this mark makes the packet local.
#[inline(always)]
pub(crate) fn to_proxy(ctx: &TcContext) -> i32 {
    set_mark(ctx, mark::TO_PROXY);
    PASS
}

/// Through the stack, judged in every direction that this node judges.
#[inline(always)]
pub(crate) fn judged(ctx: &TcContext) -> i32 {
    set_mark(ctx, mark::JUDGED);
    NEXT
}

/// Through the stack, without a mark: whatever it is translated to is judged again on its way into a pod.
#[inline(always)]
pub(crate) fn unmarked(ctx: &TcContext) -> i32 {
    set_mark(ctx, 0);
    NEXT
}

/// Through the stack like [`unmarked`], and out of the node only through the tunnel.
#[inline(always)]
pub(crate) fn only_encrypted(ctx: &TcContext) -> i32 {
    set_mark(ctx, mark::ONLY_ENCRYPTED);
    NEXT
}

/// Into the tunnel, past the stack, whatever routes there are. None if the packet is longer than
/// the tunnel takes: the stack tells its sender so.
#[inline(always)]
pub(crate) fn into_tunnel(ctx: &TcContext, config: &Config) -> Option<i32> {
    if config.tunnel_ifindex == 0 {
        return None;
    }
    let mut mtu = 0;
    // Of a packet with segments each is compared, and the kernel takes no difference then.
    let (difference, flags) =
        if skb(ctx).gso_size != 0 { (0, BPF_MTU_CHK_SEGS) } else { (-(ETHERNET as i32), 0) };
    // SAFETY: the context is the kernel's own, and `mtu` outlives the call.
    let fits =
        unsafe { bpf_check_mtu(ctx.as_ptr().cast(), config.tunnel_ifindex, &raw mut mtu, difference, flags) };
    if fits > 0 {
        return None;
    }
    // A device that is gone drops the packet, and so does the redirection.
    // SAFETY: a helper that takes integers; a wrong index drops the packet.
    Some(unsafe { bpf_redirect(config.tunnel_ifindex, 0) as i32 })
}

/// Into a pod of this node, past the stack.
#[inline(always)]
pub(crate) fn into_pod(pod: &Endpoint) -> i32 {
    // SAFETY: a helper that takes integers; a wrong index drops the packet.
    unsafe { bpf_redirect_peer(pod.ifindex, 0) as i32 }
}

/// Gives a packet of a device without link layer the Ethernet header that the receiving end of a veth expects.
#[inline(always)]
pub(crate) fn push_ethernet(ctx: &TcContext, pod: &Endpoint) -> Result<(), Reason> {
    // SAFETY: the context is the kernel's own.
    if unsafe { bpf_skb_change_head(ctx.as_ptr().cast(), ETHERNET as u32, 0) } != 0 {
        return Err(Reason::Internal);
    }
    let mut header = [0u8; ETHERNET];
    header[..6].copy_from_slice(&pod.mac);
    header[12..].copy_from_slice(&ETHERTYPE_IPV4);
    ctx.store(0, &header, 0).map_err(|_| Reason::Internal)
}

/// To the proxy from the way out of the node: in again through the loopback device. Its address is all zeros, and only
/// a frame to the device's own address is delivered.
#[inline(always)]
pub(crate) fn to_proxy_through_loopback(ctx: &TcContext, config: &Config) -> Result<i32, Reason> {
    if config.loopback_ifindex == 0 {
        return Err(Reason::CannotSteer);
    }
    ctx.store(0, &[0u8; 6], 0).map_err(|_| Reason::CannotSteer)?;
    set_mark(ctx, mark::TO_PROXY);
    // SAFETY: a helper that takes integers; a wrong index drops the packet.
    Ok(unsafe { bpf_redirect(config.loopback_ifindex, u64::from(BPF_F_INGRESS)) as i32 })
}
