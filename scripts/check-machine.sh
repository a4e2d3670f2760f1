#!/usr/bin/env bash
# Says in one line what this machine lacks to run the node software, and stops.
set -u
lacks() { echo "this machine cannot run Selvage: $1" >&2; exit 1; }
[ "$(uname -s)" = Linux ] || lacks "it is not Linux"
IFS=. read -r major minor _ <<<"$(uname -r)"
[ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "${minor%%[^0-9]*}" -ge 6 ]; } || lacks "kernel $(uname -r) is older than 6.6"
[ "$(id -u)" -eq 0 ] || lacks "not root (network namespaces and eBPF need it); try: sudo make ..."
[ -e /sys/kernel/btf/vmlinux ] || lacks "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
[ -c /dev/net/tun ] || lacks "no /dev/net/tun (CONFIG_TUN)"
command -v rustup >/dev/null || [ -x "$HOME/.cargo/bin/rustup" ] || lacks "no rustup; see https://rustup.rs"
command -v apt-get >/dev/null || lacks "no apt-get: only Debian 12 or later is supported here"
