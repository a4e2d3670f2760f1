//! The library around the programs: pins, maps, links, listeners, events; over restarts and under wrong input.

#[cfg(test)]
mod common;

use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd as _;

use aya::programs::TcAttachType;
use common::packets::{SYN, tcp};
use common::*;
use datapath::{Attachment, Datapath, Error, Events, Listeners, Maps, Program, Rule, remove_pins};
use layout::{Config, Endpoint, RuleKey, config_flag, direction, event_kind, limits, verdict};

const CLIENT: (std::net::Ipv4Addr, u16) = (POD_A, 40_000);
const SERVER: (std::net::Ipv4Addr, u16) = (POD_B, 80);

fn attachment(device: &str, program: Program) -> Attachment {
    Attachment { device: device.to_owned(), program }
}

#[test]
fn everything_is_adopted_after_a_restart_and_nothing_lost() {
    let Some(mut bench) = bench("l-restart") else { return };
    bench.datapath.attach_pod("veth-a").unwrap();
    bench.datapath.attach_uplink("uplink").unwrap();
    bench.datapath.attach_listener_picker().unwrap();
    bench.a_sends(&tcp(CLIENT, SERVER, SYN));
    let entry = bench.entry(TCP, CLIENT, SERVER).unwrap();
    let before = attached("veth-a", TcAttachType::Ingress).unwrap();

    // As after kill -9: the new process finds the pins while the programs work on.
    let mut next = Datapath::open(&bench.pin_dir).unwrap();
    assert_eq!(attached("veth-a", TcAttachType::Ingress), Some(before));
    let mut adopted = next.adopt().unwrap();
    adopted.sort();
    let expected = [
        attachment("netns", Program::PickListener),
        attachment("uplink", Program::FromUplink),
        attachment("uplink", Program::ToUplink),
        attachment("veth-a", Program::FromPod),
        attachment("veth-a", Program::ToPod),
    ];
    assert_eq!(adopted, expected);
    let after = attached("veth-a", TcAttachType::Ingress).unwrap();
    assert_ne!(after, before, "the new process's program is in the same link");
    assert_eq!(next.maps.endpoints().unwrap().len(), 2);
    assert_eq!(bench.entry(TCP, CLIENT, SERVER), Some(entry));
    // Attaching what is attached updates it; both processes may die now.
    next.attach_pod("veth-a").unwrap();
    next.attach_listener_picker().unwrap();
    drop(next);
    assert_eq!(attached("veth-a", TcAttachType::Ingress), Some(after));
    assert!(attached("veth-a", TcAttachType::Egress).is_some());
}

#[test]
fn pins_of_maps_that_are_removed_or_stand_for_other_maps_are_made_again() {
    let Some(bench) = bench("l-pins") else { return };
    assert_eq!(bench.datapath.ensure_pins().unwrap(), [""; 0]);
    let pin = |name: &str| bench.pin_dir.join(name);
    let config = bench.datapath.maps.config().unwrap();
    std::fs::remove_file(pin(layout::maps::LISTENERS)).unwrap();
    std::fs::remove_file(pin(layout::maps::CONFIG)).unwrap();
    let mut made = bench.datapath.ensure_pins().unwrap();
    made.sort_unstable();
    let mut expected = [layout::maps::LISTENERS, layout::maps::CONFIG];
    expected.sort_unstable();
    assert_eq!(made, expected);
    // The map that the programs work on, not an empty one of its shape.
    assert_eq!(Maps::open(&bench.pin_dir).unwrap().config().unwrap(), config);
    assert_ne!(config, Config::default());
    Listeners::open(&bench.pin_dir).unwrap();

    // Whatever took its place: here a map of another kind.
    std::fs::remove_file(pin(layout::maps::LISTENERS)).unwrap();
    std::fs::hard_link(pin(layout::maps::COUNTERS), pin(layout::maps::LISTENERS)).unwrap();
    assert!(Listeners::open(&bench.pin_dir).is_err());
    assert_eq!(bench.datapath.ensure_pins().unwrap(), [layout::maps::LISTENERS]);
    Listeners::open(&bench.pin_dir).unwrap();

    // All at once, with the folder.
    let pins = || std::fs::read_dir(&bench.pin_dir).unwrap().count();
    let all = pins();
    remove_pins(&bench.pin_dir).unwrap();
    // The folder of links is none of the maps.
    assert_eq!(bench.datapath.ensure_pins().unwrap().len(), all - 1);
    assert_eq!(pins(), all);
}

#[test]
fn detaching_takes_the_programs_of_that_device_only() {
    let Some(mut bench) = bench("l-detach") else { return };
    bench.datapath.attach_pod("veth-a").unwrap();
    bench.datapath.attach_pod("veth-b").unwrap();
    assert!(bench.datapath.detach("veth-a").unwrap());
    assert!(!bench.datapath.detach("veth-a").unwrap());
    assert_eq!(attached("veth-a", TcAttachType::Ingress), None);
    assert_eq!(attached("veth-a", TcAttachType::Egress), None);
    assert!(attached("veth-b", TcAttachType::Ingress).is_some());
    assert_eq!(
        bench.datapath.attachments().unwrap(),
        [attachment("veth-b", Program::FromPod), attachment("veth-b", Program::ToPod)]
    );
}

#[test]
fn a_device_made_again_under_its_name_is_attached_anew() {
    let Some(mut bench) = bench("l-again") else { return };
    bench.datapath.attach_pod("veth-a").unwrap();
    ip(&["link", "del", "veth-a"]);
    // A dead link is no attachment, and its pin goes.
    assert!(bench.datapath.adopt().unwrap().is_empty());
    assert!(bench.datapath.attachments().unwrap().is_empty());
    bench.datapath.attach_pod("veth-b").unwrap();
    ip(&["link", "del", "veth-b"]);
    ip(&["link", "add", "veth-b", "type", "veth", "peer", "name", "veth-b-x"]);
    bench.datapath.attach_pod("veth-b").unwrap();
    assert!(attached("veth-b", TcAttachType::Ingress).is_some());
    assert!(attached("veth-b", TcAttachType::Egress).is_some());
}

#[test]
fn a_renamed_devices_link_is_not_taken_for_its_successors() {
    let Some(mut bench) = bench("l-renamed") else { return };
    bench.datapath.attach_pod("veth-a").unwrap();
    ip(&["link", "set", "veth-a", "down"]);
    ip(&["link", "set", "veth-a", "name", "other"]);
    ip(&["link", "add", "veth-a", "type", "veth", "peer", "name", "veth-a-y"]);
    bench.datapath.attach_pod("veth-a").unwrap();
    assert!(attached("veth-a", TcAttachType::Ingress).is_some());
    assert!(attached("veth-a", TcAttachType::Egress).is_some());
}

#[test]
fn names_with_dots_and_missing_devices() {
    let Some(mut bench) = bench("l-names") else { return };
    ip(&["link", "add", "up.100", "type", "veth", "peer", "name", "up.100-x"]);
    bench.datapath.attach_uplink("up.100").unwrap();
    let both = [Program::FromUplink, Program::ToUplink].map(|program| attachment("up.100", program));
    assert_eq!(bench.datapath.attachments().unwrap(), both);
    assert_eq!(bench.datapath.adopt().unwrap(), both);
    assert!(bench.datapath.detach("up.100").unwrap());
    let error = bench.datapath.attach_pod("no-such").unwrap_err();
    assert!(matches!(&error, Error::Device { device, .. } if device == "no-such"), "{error}");
}

#[test]
fn a_map_of_another_layout_is_refused_by_name_and_left_alone() {
    let Some(bench) = bench("l-layout") else { return };
    let dir =
        bench.pin_dir.with_extension("").with_file_name(format!("selvage-test-{}-other", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    // ENDPOINTS where IDENTITIES should be: another value size.
    let endpoints = aya::maps::MapData::from_pin(bench.pin_dir.join(layout::maps::ENDPOINTS)).unwrap();
    endpoints.pin(dir.join(layout::maps::IDENTITIES)).unwrap();
    // The maps that `Maps` opens before.
    for before in [layout::maps::CONFIG, layout::maps::ENDPOINTS] {
        aya::maps::MapData::from_pin(bench.pin_dir.join(before)).unwrap().pin(dir.join(before)).unwrap();
    }
    for error in [Datapath::open(&dir).err().unwrap(), Maps::open(&dir).err().unwrap()] {
        let Error::LayoutMismatch { path, field, found, expected } = &error else { panic!("{error}") };
        assert!(path.ends_with(layout::maps::IDENTITIES));
        let sizes = (size_of::<Endpoint>() as u32, size_of::<u32>() as u32);
        assert_eq!((*field, *found, *expected), ("value size", sizes.0, sizes.1));
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3, "nothing was made beside them");
    remove_pins(&dir).unwrap();
    remove_pins(&dir).unwrap();
    assert!(!dir.exists());
}

#[test]
fn maps_are_written_read_and_emptied() {
    let Some(mut bench) = bench("l-maps") else { return };
    // Another reader, without programs, sees the same.
    let reader = Maps::open(&bench.pin_dir).unwrap();
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    let maps = &mut bench.datapath.maps;
    let endpoint = Endpoint { ifindex: 7, generation: 9, identity: 300, ..Endpoint::default() };
    maps.put_endpoint(v6, &endpoint).unwrap();
    let found = reader.endpoints().unwrap();
    assert_eq!(found.iter().map(|(a, _)| *a).collect::<Vec<_>>(), [IpAddr::V4(POD_A), IpAddr::V4(POD_B), v6]);
    assert_eq!(found[2].1, endpoint);
    assert!(maps.remove_endpoint(v6).unwrap());
    assert!(!maps.remove_endpoint(v6).unwrap());

    maps.put_identity(v6, 300).unwrap();
    assert!(reader.identities().unwrap().contains(&(v6, 300)));
    assert!(maps.remove_identity(v6).unwrap());
    assert!(!maps.remove_identity(v6).unwrap());

    let key = rule_key(5, direction::EGRESS, 300, TCP, 443);
    let rule = Rule { prefix_len: RuleKey::BITS_EXACT, key, verdict: verdict::REDIRECT, origin: 12 };
    maps.put_rule(&rule).unwrap();
    assert_eq!(reader.rules().unwrap(), [rule]);
    assert!(!maps.remove_rule(RuleKey::BITS_ANY_PORT, &key).unwrap(), "another prefix");
    assert!(maps.remove_rule(rule.prefix_len, &key).unwrap());
    assert!(reader.rules().unwrap().is_empty());

    bench.a_sends(&tcp(CLIENT, SERVER, SYN));
    bench.a_sends(&tcp(CLIENT, (WORLD, 80), SYN));
    bench.b_sends(&tcp((POD_B, 1), (WORLD, 80), SYN));
    assert_eq!(reader.connections().unwrap().len(), 3);
    assert_eq!(bench.datapath.maps.remove_connections_of(IpAddr::V4(POD_A)).unwrap(), 2);
    assert_eq!(reader.connections().unwrap().len(), 1);
}

#[test]
fn values_that_no_map_may_hold_are_refused_by_field() {
    let Some(mut bench) = bench("l-invalid") else { return };
    let maps = &mut bench.datapath.maps;
    let field = |result: Result<(), Error>| match result {
        Err(Error::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    for slots in [0, limits::LISTENERS + 1] {
        assert_eq!(field(maps.set_config(&Config { slots, ..Config::default() })), "slots");
    }
    let address = IpAddr::V4(POD_A);
    assert_eq!(
        field(maps.put_endpoint(address, &Endpoint { ifindex: 1, ..Endpoint::default() })),
        "generation"
    );
    assert_eq!(
        field(maps.put_endpoint(address, &Endpoint { generation: 1, ..Endpoint::default() })),
        "ifindex"
    );
    assert_eq!(field(maps.put_identity(address, 0)), "identity");
    let rule = Rule { prefix_len: 96, key: RuleKey::default(), verdict: verdict::ALLOW, origin: 0 };
    assert_eq!(field(maps.put_rule(&Rule { verdict: 3, ..rule })), "verdict");
    for prefix_len in [0, 71, 73, 79, 97] {
        assert_eq!(field(maps.put_rule(&Rule { prefix_len, ..rule })), "prefix_len");
    }
}

#[test]
fn a_full_map_says_so() {
    let Some(mut bench) = bench("l-full") else { return };
    let maps = &mut bench.datapath.maps;
    let endpoint = Endpoint { ifindex: 1, generation: 1, ..Endpoint::default() };
    let refused = (0..=limits::ENDPOINTS)
        .find_map(|n| maps.put_endpoint(IpAddr::V4((0x0a01_0000 + n).into()), &endpoint).err())
        .unwrap();
    assert!(
        matches!(refused, Error::Full { map: layout::maps::ENDPOINTS, limit: limits::ENDPOINTS, .. }),
        "{refused}"
    );
}

#[test]
fn listeners_are_stored_by_slot_and_leave_when_closed() {
    let Some(bench) = bench("l-listeners") else { return };
    let mut listeners = Listeners::open(&bench.pin_dir).unwrap();
    let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listeners.set(0, &socket).unwrap();
    listeners.set(Listeners::SLOTS - 1, &socket.as_fd()).unwrap();
    assert!(matches!(listeners.set(Listeners::SLOTS, &socket), Err(Error::Invalid { field: "slot", .. })));
    listeners.clear(0).unwrap();
    listeners.clear(0).unwrap();
    assert!(listeners.clear(Listeners::SLOTS).is_err());
    let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    assert!(matches!(listeners.set(1, &raw), Err(Error::Map { .. })), "does not listen yet");
}

#[test]
fn events_wake_their_reader() {
    let Some(bench) = bench("l-events") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut events = Events::open(&bench.pin_dir).unwrap();
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(50), events.next()).await;
        assert!(waiting.is_err(), "nothing happened yet");
        for _ in 0..3 {
            bench.a_sends(&tcp((POD_B, 1), SERVER, SYN));
        }
        for _ in 0..3 {
            let next = tokio::time::timeout(std::time::Duration::from_secs(5), events.next());
            assert_eq!(next.await.unwrap().unwrap().kind, event_kind::DROPPED);
        }
        assert!(events.try_next().is_none());
    });
}

#[test]
fn events_beyond_the_ring_are_counted_as_lost() {
    let Some(bench) = bench("l-lost") else { return };
    let packet = tcp((POD_B, 1), SERVER, SYN);
    // An event of the ring has a header of 8 bytes.
    let fits = limits::EVENT_BYTES as usize / (size_of::<layout::Event>() + 8);
    for _ in 0..fits + 100 {
        bench.a_sends(&packet);
    }
    let lost = bench.counters().get(layout::Reason::EventLost);
    assert!((90..=110).contains(&lost), "{lost}");
    assert_eq!(bench.events().len() as u64 + lost, fits as u64 + 100);
}

#[test]
fn a_process_in_another_network_namespace_detaches_nothing() {
    let Some(mut bench) = bench("l-netns") else { return };
    bench.datapath.attach_pod("veth-a").unwrap();
    let attached = bench.datapath.attachments().unwrap();
    assert_eq!(attached.len(), 2);
    let pin_dir = bench.pin_dir.clone();
    let elsewhere = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut datapath = Datapath::open(&pin_dir).unwrap();
        assert_eq!(datapath.adopt().unwrap(), []);
        datapath.attachments().unwrap()
    });
    assert_eq!(elsewhere.join().unwrap(), attached);
}

#[test]
fn a_swap_that_failed_half_way_is_known_until_a_plan_is_carried_out() {
    let Some(mut bench) = bench("l-swapping") else { return };
    let swapping =
        |bench: &common::Bench| bench.datapath.maps.config().unwrap().flags & config_flag::SWAPPING != 0;
    assert!(!swapping(&bench));
    let refused = Rule { prefix_len: 96, key: RuleKey::default(), verdict: 3, origin: 0 };
    let plan = datapath::lower::Plan { add: vec![refused], ..Default::default() };
    assert!(plan.apply(&mut bench.datapath.maps).is_err());
    assert!(swapping(&bench));
    // The agent writes the node's configuration for reasons of its own, a new listener for example.
    bench.set_config(|config| config.slots = 2);
    assert!(swapping(&bench), "the maps still hold half of each policy");
    datapath::lower::Plan::default().apply(&mut bench.datapath.maps).unwrap();
    assert!(!swapping(&bench));
    bench.set_config(|config| config.flags |= config_flag::SWAPPING);
    assert!(!swapping(&bench), "the flag has one writer");
}
