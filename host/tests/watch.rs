//! What the kernel tells of changes, in a namespace of this test.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::Duration;

use host::netlink::{Change, Watch};
use nix::sched::{CloneFlags, unshare};

fn sh(script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}

/// Reads until this is among the changes.
async fn expect(watch: &mut Watch, wanted: impl Fn(&Change) -> bool) {
    let found = async { while !watch.next().await.unwrap().iter().any(&wanted) {} };
    tokio::time::timeout(Duration::from_secs(3), found).await.unwrap();
}

#[test]
fn every_kind_of_change_is_told_and_so_is_an_overrun() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "skipped: needs root");
        return;
    }
    // This thread only; its children come along.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut watch = Watch::open().unwrap();
        sh("ip link add w0 type veth peer name w1; ip link set w0 up; ip link set w1 up");
        expect(&mut watch, |change| matches!(change, Change::Link { name, deleted: false, .. } if name == "w0")).await;
        sh("ip addr add 192.0.2.1/24 dev w0");
        expect(&mut watch, |change| *change == Change::Address).await;
        sh("ip route add 198.51.100.0/24 dev w0 proto 83 table 2005");
        let route = |gone| move |change: &Change| {
            matches!(change, Change::Route { table: 2005, protocol: 83, device: Some(_), deleted } if *deleted == gone)
        };
        expect(&mut watch, route(false)).await;
        sh("ip route flush table 2005");
        expect(&mut watch, route(true)).await;
        sh("ip rule add pref 9 lookup 2005; ip rule del pref 9");
        expect(&mut watch, |change| matches!(change, Change::Rule { deleted: true, .. })).await;
        sh("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:01 dev w0 nud permanent; ip neigh del 192.0.2.9 dev w0");
        expect(&mut watch, |change| matches!(change, Change::Neighbour { deleted: true, .. })).await;
        sh("nft add table inet mine; nft 'add chain inet mine c'; nft flush ruleset");
        expect(&mut watch, |change| *change == Change::Firewall { table: "mine".into() }).await;
        sh("ip link set w0 down");
        expect(&mut watch, |change| matches!(change, Change::Link { set_down: true, .. })).await;
        sh("ip link del w0");
        expect(&mut watch, |change| matches!(change, Change::Link { deleted: true, .. })).await;
        // More than the socket holds.
        sh("ip link add w0 type veth peer name w1; ip link set w0 up; ip link set w1 up
            for number in $(seq 0 3999); do
                echo route add 10.$((number / 250)).$((number % 250)).0/24 dev w0
            done | ip -batch -");
        expect(&mut watch, |change| *change == Change::Missed).await;
    });
}
