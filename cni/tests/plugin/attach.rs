//! ADD and DEL with real namespaces, a real process, and an agent of the test.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::agent::host_interface;
use crate::node::{Node, Pod, ask_in};
use cni::step::Step;
use host::netlink::{Link, Mac, Neighbour, Route, TABLE_MAIN, VethPair};
use host::netns::NetNs;
use ipnet::IpNet;
use serde_json::Value;

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn host_name(pod: &Pod) -> String {
    host_interface(&(pod.id.clone(), "eth0".to_owned()))
}

fn link(namespace: &NetNs, name: &str) -> Option<Link> {
    ask_in(namespace, |netlink| async move { netlink.link(name).await.unwrap() })
}

#[test]
fn the_result_fits_the_version_and_the_devices() {
    let Some(mut node) = Node::new() else { return };
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        node.version = version;
        let pod = Pod::new();
        let before = node.state(&pod);
        let result = node.add(&pod);
        assert!(result.success, "{result:?}");
        let json = result.json();
        let (host, peer) =
            (link(&node.namespace, &host_name(&pod)).unwrap(), link(pod.namespace(), "eth0").unwrap());

        assert_eq!(json["cniVersion"], version);
        let address = json["ips"][0]["address"].as_str().unwrap();
        assert_eq!(json["ips"][0]["gateway"], "169.254.1.1");
        let expected = if version.starts_with('0') { Value::from("4") } else { Value::Null };
        assert_eq!(json["ips"][0]["version"], expected, "only the old layout has a version here");
        let index = usize::try_from(json["ips"][0]["interface"].as_u64().unwrap()).unwrap();
        let [on_node, in_pod] = json["interfaces"].as_array().unwrap().as_slice() else { panic!("{json}") };
        assert_eq!(json["interfaces"][index], *in_pod);
        assert_eq!(in_pod["sandbox"], pod.path.display().to_string());
        assert_eq!(on_node["sandbox"].as_str().unwrap_or_default(), "");
        for (printed, device) in [(on_node, &host), (in_pod, &peer)] {
            assert_eq!(printed["name"], device.name);
            assert_eq!(printed["mac"], device.mac.unwrap().to_string());
            assert!(device.up && device.mtu == 1420);
            if !version.starts_with('0') {
                assert_eq!(printed["mtu"], device.mtu);
            }
        }
        assert_eq!(json["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(json["routes"][0]["gw"], "169.254.1.1");

        ask_in(pod.namespace(), |netlink| async move {
            assert!(netlink.addresses().await.unwrap().contains(&(peer.index, net(address))));
            assert!(netlink.link("lo").await.unwrap().unwrap().up);
            let routes = netlink.routes(TABLE_MAIN).await.unwrap();
            assert!(routes.contains(&Route::link(net("169.254.1.1/32"), peer.index)));
            assert!(routes.contains(&Route::via(net("0.0.0.0/0"), GATEWAY, peer.index)));
            let gateway =
                Neighbour { device: peer.index, address: GATEWAY, mac: host.mac.unwrap(), permanent: true };
            assert!(netlink.neighbours().await.unwrap().contains(&gateway));
        });
        node.netlink(|netlink| async move {
            assert!(
                netlink.routes(TABLE_MAIN).await.unwrap().contains(&Route::link(net(address), host.index))
            );
            let (address, mac) = (net(address).addr(), peer.mac.unwrap());
            let expected = Neighbour { device: host.index, address, mac, permanent: true };
            assert!(netlink.neighbours().await.unwrap().contains(&expected));
        });

        let journal = node.journal.lock().unwrap();
        let (allocated, attached) = (journal.allocated.last().unwrap(), journal.attached.last().unwrap());
        assert_eq!((allocated.pod_namespace.as_str(), &allocated.pod_name), ("shop", &pod.id));
        assert_eq!(
            (&allocated.pod_uid, &allocated.netns),
            (&format!("u-{}", pod.id), &pod.path.display().to_string())
        );
        assert_eq!(attached.host_ifindex, link(&node.namespace, &host_name(&pod)).unwrap().index);
        assert_eq!(attached.attachment, allocated.attachment);
        let macs =
            (json["interfaces"][1]["mac"].as_str().unwrap(), json["interfaces"][0]["mac"].as_str().unwrap());
        let mac = |bytes: &[u8]| Mac(bytes.try_into().unwrap()).to_string();
        assert_eq!((mac(&attached.pod_mac).as_str(), mac(&attached.host_mac).as_str()), macs);
        drop(journal);

        assert!(node.del(&pod).success);
        assert_eq!(node.state(&pod), before);
    }
}

#[test]
fn pods_reach_each_other_through_the_node() {
    let Some(node) = Node::new() else { return };
    host::sysctl::write_in(&node.namespace, "net.ipv4.ip_forward", "1").unwrap();
    let (client, server) = (Pod::new(), Pod::new());
    assert!(node.add(&client).success && node.add(&server).success);
    let listener = server.namespace().run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
    let address = node.journal.lock().unwrap().allocations[&(server.id.clone(), "eth0".to_owned())];
    let mut stream = client
        .namespace()
        .run(|| TcpStream::connect((Ipv4Addr::new(10, 1, 0, address), 80)).unwrap())
        .unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), stream.local_addr().unwrap().ip());
    accepted.write_all(b"hello").unwrap();
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
}

#[test]
#[cfg(debug_assertions)]
fn an_add_killed_at_any_step_is_undone_by_del() {
    let Some(mut node) = Node::new() else { return };
    for step in Step::ADD {
        let pod = Pod::new();
        let before = node.state(&pod);
        node.kill_at = Some(step as u32);
        assert!(node.add(&pod).killed, "{step:?}");
        node.kill_at = None;
        assert!(node.del(&pod).success, "{step:?}");
        assert_eq!(node.state(&pod), before, "{step:?}");
    }
}

#[test]
#[cfg(debug_assertions)]
fn an_add_after_a_killed_one_succeeds_or_fails_cleanly() {
    let Some(mut node) = Node::new() else { return };
    for step in Step::ADD {
        let pod = Pod::new();
        let before = node.state(&pod);
        node.kill_at = Some(step as u32);
        assert!(node.add(&pod).killed);
        node.kill_at = None;
        let left = node.state(&pod);
        let again = node.add(&pod);
        if (step as u32) <= Step::CreateVeth as u32 {
            assert!(again.success, "{step:?}: {again:?}");
        } else {
            assert_eq!(again.error().0, 100, "{step:?}");
            assert_eq!(node.state(&pod), left);
        }
        assert!(node.del(&pod).success);
        assert_eq!(node.state(&pod), before);
    }
}

#[test]
fn a_left_over_pair_of_the_same_attachment_is_replaced() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    let name = host_name(&pod);
    let old =
        VethPair { name: &name, mac: None, peer_name: "x", peer_mac: None, peer_namespace: None, mtu: 1500 };
    node.netlink(|netlink| async move { netlink.create_veth(&old).await.unwrap() });
    let result = node.add(&pod);
    assert!(result.success, "{result:?}");
    assert_eq!(link(&node.namespace, "x"), None);
    assert_eq!(
        link(&node.namespace, &name).unwrap().peer,
        link(pod.namespace(), "eth0").map(|link| link.index)
    );
}

#[test]
#[cfg(debug_assertions)]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    let Some(mut node) = Node::new() else { return };
    for step in Step::DEL {
        let pod = Pod::new();
        let before = node.state(&pod);
        assert!(node.add(&pod).success);
        node.kill_at = Some(step as u32);
        assert!(node.del(&pod).killed, "{step:?}");
        node.kill_at = None;
        let result = node.del(&pod);
        assert!(
            result.success && result.stdout.is_empty() && result.stderr.is_empty(),
            "{step:?}: {result:?}"
        );
        assert_eq!(node.state(&pod), before, "{step:?}");
        assert!(node.notes().is_empty());
    }
}

#[test]
fn del_of_what_is_gone_succeeds() {
    let Some(node) = Node::new() else { return };
    let never = Pod::new();
    assert!(node.del(&never).success, "never added");

    let before = node.state(&never);
    for with_result in [true, false] {
        let mut ended = Pod::new();
        let mut config = node.config();
        let result = node.add(&ended).json();
        if with_result {
            config["prevResult"] = result;
        }
        ended.end();
        for _ in 0..2 {
            assert!(node.call("DEL", &ended, &config).success, "the namespace is gone");
        }
        // Without a result nothing names the host side but the agent; the kernel removes it with the other end, in its time.
        let start = Instant::now();
        while !with_result && node.state(&never) != before && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(node.state(&never), before);
    }

    let nameless = Pod::new();
    let result = node.add(&nameless).json();
    let mut config = node.config();
    config["prevResult"] = result;
    let mut variables = nameless.variables();
    variables.retain(|(name, _)| *name != "CNI_NETNS");
    variables.push(("CNI_COMMAND", "DEL".to_owned()));
    variables.push(("CNI_NETNS", String::new()));
    assert!(node.run(&variables, &config.to_string()).success);
    assert_eq!(node.state(&nameless), node.state(&Pod::new()), "found by prevResult without CNI_NETNS");
}

#[test]
fn del_leaves_devices_of_others_alone() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    let pair = VethPair {
        name: "other0",
        mac: None,
        peer_name: "eth0",
        peer_mac: None,
        peer_namespace: Some(pod.namespace()),
        mtu: 1500,
    };
    node.netlink(|netlink| async move { netlink.create_veth(&pair).await.unwrap() });
    let before = node.state(&pod);
    assert!(node.del(&pod).success);
    let mut config = node.config();
    // One of another pod, and one that only looks like it.
    let neighbour = Pod::new();
    assert!(node.add(&neighbour).success);
    node.netlink(|netlink| async move {
        let (name, peer_name) = ("svother0", "svother1");
        let pair = VethPair { name, mac: None, peer_name, peer_mac: None, peer_namespace: None, mtu: 1500 };
        netlink.create_veth(&pair).await.unwrap();
    });
    let theirs = [host_name(&neighbour), "svother0".to_owned()];
    let named: Vec<_> = theirs.iter().map(|name| serde_json::json!({"name": name})).collect();
    config["prevResult"] =
        serde_json::json!({"interfaces": [{"name": "other0"}, {"name": "lo"}, named[0], named[1]]});
    assert!(node.call("DEL", &pod, &config).success);
    for name in &theirs {
        assert!(link(&node.namespace, name).is_some(), "{name}");
    }
    assert!(node.del(&neighbour).success);
    assert_eq!(link(&node.namespace, &theirs[0]), None);
    node.netlink(|netlink| async move {
        netlink.delete_link("svother0").await.unwrap();
    });
    assert_eq!(node.state(&pod), before);

    let mut own = pod.variables();
    own.retain(|(name, _)| *name != "CNI_NETNS" && *name != "CNI_IFNAME");
    own.extend([("CNI_NETNS", "/proc/self/ns/net".to_owned()), ("CNI_IFNAME", "other0".to_owned())]);
    own.push(("CNI_COMMAND", "DEL".to_owned()));
    assert!(node.run(&own, &node.config().to_string()).success);
    assert_eq!(node.state(&pod), before, "a DEL that names the node's own namespace takes nothing from it");
}

/// Destination, gateway, device and metric of the pod's IPv4 routes to the gateway and to
/// everything.
fn ways_out(pod: &Pod) -> Vec<(String, u32, u32)> {
    ask_in(pod.namespace(), |netlink| async move {
        let routes = netlink.routes(TABLE_MAIN).await.unwrap();
        let ours = routes
            .into_iter()
            .filter(|route| [net("0.0.0.0/0"), net("169.254.1.1/32")].contains(&route.destination));
        let mut ours: Vec<_> =
            ours.map(|r| (r.destination.to_string(), r.device.unwrap(), r.metric)).collect();
        ours.sort();
        ours
    })
}

fn call_for(
    node: &Node,
    command: &str,
    pod: &Pod,
    ifname: &str,
    previous: Option<Value>,
) -> crate::node::Run {
    let mut variables = pod.variables();
    variables.retain(|(name, _)| *name != "CNI_IFNAME");
    variables.extend([("CNI_IFNAME", ifname.to_owned()), ("CNI_COMMAND", command.to_owned())]);
    let mut config = node.config();
    if let Some(previous) = previous {
        config["prevResult"] = previous;
    }
    node.run(&variables, &config.to_string())
}

#[test]
fn a_second_interface_leaves_the_first_ones_way_out_alone() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    let empty = node.state(&pod);
    let first = node.add(&pod);
    assert!(first.success, "{first:?}");
    let (alone, before) = (ways_out(&pod), node.state(&pod));
    let second = call_for(&node, "ADD", &pod, "net1", None);
    assert!(second.success, "{second:?}");
    let (eth0, net1) =
        (link(pod.namespace(), "eth0").unwrap().index, link(pod.namespace(), "net1").unwrap().index);
    let (gateway, all) = ("169.254.1.1/32".to_owned(), "0.0.0.0/0".to_owned());
    assert_eq!(alone, [(all.clone(), eth0, 0), (gateway.clone(), eth0, 0)]);
    let mut both = alone.clone();
    both.extend([(all, net1, 1), (gateway, net1, 1)]);
    both.sort();
    assert_eq!(ways_out(&pod), both);
    let printed = second.json();
    assert_eq!(printed["routes"][0]["priority"], 1, "{printed}");
    // What speaks to the second one's address is answered through the second one.
    let address = printed["ips"][0]["address"].as_str().unwrap();
    let (rules, routes) = ask_in(pod.namespace(), |netlink| async move {
        (netlink.rules().await.unwrap(), netlink.all_routes().await.unwrap())
    });
    let rule = rules.iter().find(|rule| rule.from == Some(net(address))).unwrap();
    let by_rule = routes.iter().find(|r| r.table == rule.table && r.destination == net("0.0.0.0/0")).unwrap();
    assert_eq!((by_rule.device, by_rule.gateway), (Some(net1), Some(GATEWAY)));

    for (ifname, result) in [("eth0", first.json()), ("net1", printed.clone())] {
        let checked = call_for(&node, "CHECK", &pod, ifname, Some(result));
        assert!(checked.success, "{ifname}: {checked:?}");
    }
    // The route is there, but through the other interface.
    ask_in(pod.namespace(), |netlink| async move {
        let own = Route::via(net("0.0.0.0/0"), GATEWAY, eth0);
        assert!(netlink.delete_route(&own).await.unwrap());
    });
    let (code, message) = call_for(&node, "CHECK", &pod, "eth0", Some(first.json())).error();
    assert!(code == 103 && message.contains("eth0"), "{message}");
    ask_in(pod.namespace(), |netlink| async move {
        netlink.create_route(&Route::via(net("0.0.0.0/0"), GATEWAY, eth0)).await.unwrap();
    });

    let deleted = call_for(&node, "DEL", &pod, "net1", Some(printed));
    assert!(deleted.success, "{deleted:?}");
    assert_eq!(ways_out(&pod), alone);
    assert_eq!(node.state(&pod), before);
    let rules = ask_in(pod.namespace(), |netlink| async move { netlink.rules().await.unwrap() });
    assert!(rules.iter().all(|rule| rule.from.is_none()), "{rules:?}");

    // The other way round: the one that stays is the way out.
    assert!(call_for(&node, "ADD", &pod, "net1", None).success);
    let net1 = link(pod.namespace(), "net1").unwrap().index;
    assert!(node.del(&pod).success);
    assert!(ways_out(&pod).contains(&("0.0.0.0/0".to_owned(), net1, 1)));
    assert!(call_for(&node, "DEL", &pod, "net1", None).success);
    assert_eq!(node.state(&pod), empty);
}

#[test]
fn another_plugins_default_route_stays_the_best_whatever_its_metric() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    let other = ask_in(pod.namespace(), |netlink| async move {
        let pair = VethPair {
            name: "eth0",
            mac: None,
            peer_name: "other",
            peer_mac: None,
            peer_namespace: None,
            mtu: 1500,
        };
        netlink.create_veth(&pair).await.unwrap();
        let index = netlink.link("eth0").await.unwrap().unwrap().index;
        netlink.ensure_address(index, net("192.0.2.2/24")).await.unwrap();
        netlink.set_up(index).await.unwrap();
        let route = Route::via(net("0.0.0.0/0"), "192.0.2.1".parse().unwrap(), index).with_metric(100);
        netlink.create_route(&route).await.unwrap();
        assert!(netlink.create_route(&route).await.unwrap_err().is_exists());
        index
    });
    let before = ways_out(&pod);
    assert_eq!(before, [("0.0.0.0/0".to_owned(), other, 100)]);
    let added = call_for(&node, "ADD", &pod, "net1", None);
    assert!(added.success, "{added:?}");
    let net1 = link(pod.namespace(), "net1").unwrap().index;
    assert_eq!(
        ways_out(&pod),
        [before[0].clone(), ("0.0.0.0/0".to_owned(), net1, 101), ("169.254.1.1/32".to_owned(), net1, 101)]
    );
    assert!(call_for(&node, "DEL", &pod, "net1", Some(added.json())).success);
    assert_eq!(ways_out(&pod), before);
}

#[test]
fn a_del_without_agent_leaves_a_note_and_removes_the_pair() {
    let Some(mut node) = Node::new() else { return };
    let pod = Pod::new();
    assert!(node.add(&pod).success);
    node.agent = None;
    let start = Instant::now();
    let result = node.del(&pod);
    assert!(result.success && result.stdout.is_empty(), "{result:?}");
    assert!(result.stderr.contains("left a note"), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(link(&node.namespace, &host_name(&pod)), None);
    assert_eq!(node.notes(), [format!("{}_eth0.json", pod.id)]);
    let path = node.folder.path().join("cni/pending").join(&node.notes()[0]);
    let note: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(note, serde_json::json!({"containerID": pod.id, "ifname": "eth0"}));

    assert!(node.del(&pod).success);
    assert_eq!(node.notes().len(), 1);
    node.start_agent();
    assert!(node.del(&pod).success, "with the agent back the next DEL does it itself");
    assert!(node.notes().is_empty());
    assert!(node.journal.lock().unwrap().allocations.is_empty());
}

#[test]
fn a_note_is_withdrawn_by_the_next_add() {
    let Some(mut node) = Node::new() else { return };
    let pod = Pod::new();
    node.agent = None;
    assert!(node.del(&pod).success);
    assert_eq!(node.notes().len(), 1);
    node.start_agent();
    assert!(node.add(&pod).success);
    assert!(node.notes().is_empty(), "it would release the new attachment at the agent's next start");
}

#[test]
fn a_del_that_the_agent_refuses_is_tried_again_by_the_runtime() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    assert!(node.add(&pod).success);
    node.journal.lock().unwrap().refuse_release = true;
    let (code, message) = node.del(&pod).error();
    assert_eq!(code, 101);
    assert!(message.contains("the journal cannot be written"), "{message}");
    node.journal.lock().unwrap().refuse_release = false;
    assert!(node.del(&pod).success);
    assert!(node.journal.lock().unwrap().allocations.is_empty());
}

#[test]
fn many_pods_at_once_get_different_addresses() {
    let Some(node) = Node::new() else { return };
    let pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| assert!(node.add(pod).success));
        }
    });
    let mut numbers: Vec<u8> = node.journal.lock().unwrap().allocations.values().copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 20);
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| assert!(node.del(pod).success));
        }
    });
    assert!(node.journal.lock().unwrap().allocations.is_empty());
}
