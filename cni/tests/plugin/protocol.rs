//! What the plugin says: versions, errors, CHECK and STATUS.

use std::time::{Duration, Instant};

use crate::agent::host_interface;
use crate::node::{Node, Pod, Run, ask_in, plain_file};
use host::netlink::{LinkChange, Mac, Route, TABLE_MAIN};
use serde_json::{Value, json};

/// A variable of the environment and its value.
type Change<'a> = (&'a str, &'a str);
/// Takes something away that ADD made.
type Loss = fn(&Node, &Pod);

#[test]
fn version_needs_nothing_else() {
    let Some(mut node) = Node::new() else { return };
    node.agent = None;
    let start = Instant::now();
    let run = node.run(&[("CNI_COMMAND", "VERSION".to_owned())], "");
    println!("VERSION took {:?}", start.elapsed());
    assert!(run.success && run.stderr.is_empty(), "{run:?}");
    let expected = json!({"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
    assert_eq!(run.json(), expected);
    let by_hand = node.run(&[], "");
    assert!(by_hand.success && by_hand.stdout.is_empty() && by_hand.stderr.contains("1.1.0"), "{by_hand:?}");
}

#[test]
fn errors_have_the_codes_of_the_specification_and_name_what_is_wrong() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    let good = node.config();
    let before = node.state(&pod);
    let with = |key: &str, value: Value| {
        let mut config = node.config();
        config[key] = value;
        config.to_string()
    };
    let environments: [(&str, &[Change<'_>], u64, &[&str]); 12] = [
        ("FROB", &[], 4, &["CNI_COMMAND", "FROB"]),
        ("add", &[], 4, &["CNI_COMMAND"]),
        (
            "ADD",
            &[("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", "")],
            4,
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        ),
        ("CHECK", &[("CNI_NETNS", "")], 4, &["CNI_NETNS"]),
        (
            "DEL",
            &[("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", "")],
            4,
            &["CNI_CONTAINERID", "CNI_IFNAME"],
        ),
        ("ADD", &[("CNI_CONTAINERID", "../../etc")], 4, &["CNI_CONTAINERID", "../../etc"]),
        ("ADD", &[("CNI_CONTAINERID", "-x")], 4, &["CNI_CONTAINERID"]),
        ("ADD", &[("CNI_IFNAME", "sixteen-letters-")], 4, &["CNI_IFNAME", "sixteen-letters-"]),
        ("ADD", &[("CNI_IFNAME", "a/b")], 4, &["CNI_IFNAME"]),
        ("ADD", &[("CNI_ARGS", "novalue")], 4, &["CNI_ARGS", "novalue"]),
        ("ADD", &[("CNI_NETNS", "/proc/self/ns/net")], 8, &["CNI_NETNS", "own"]),
        ("ADD", &[("CNI_NETNS", "/no/such/namespace")], 8, &["/no/such/namespace"]),
    ];
    for (command, changes, code, words) in environments {
        let mut variables = pod.variables();
        variables.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        variables.extend(changes.iter().map(|(name, value)| (*name, (*value).to_owned())));
        variables.push(("CNI_COMMAND", command.to_owned()));
        expect(&node.run(&variables, &good.to_string()), code, words, &format!("{command} {changes:?}"));
    }
    let configs: [(String, u64, &[&str]); 9] = [
        (String::new(), 6, &[]),
        ("{".to_owned(), 6, &[]),
        (with("name", Value::Null), 7, &["name"]),
        (with("name", json!("-bad name")), 7, &["-bad name"]),
        (with("cniVersion", json!("9.9.9")), 1, &["9.9.9"]),
        (with("cniVersion", json!("0.2.0")), 1, &["0.2.0"]),
        (with("agentSocket", json!("relative")), 7, &["agentSocket", "relative"]),
        (with("agentSokcet", json!("/x")), 2, &["agentSokcet", "/x"]),
        (with("pad", json!("x".repeat(1 << 20))), 7, &["bytes"]),
    ];
    for (config, code, words) in configs {
        let mut variables = pod.variables();
        variables.push(("CNI_COMMAND", "ADD".to_owned()));
        let what = &config[..config.len().min(80)];
        expect(&node.run(&variables, &config), code, words, what);
    }
    let mut variables = pod.variables();
    variables.retain(|(name, _)| *name != "CNI_NETNS");
    variables.push(("CNI_NETNS", plain_file(node.folder.path()).display().to_string()));
    variables.push(("CNI_COMMAND", "ADD".to_owned()));
    expect(&node.run(&variables, &good.to_string()), 8, &["not a network namespace"], "a plain file");
    assert_eq!(node.state(&pod), before);
    assert!(node.journal.lock().unwrap().allocated.is_empty(), "nothing was asked for");
}

fn expect(run: &Run, code: u64, words: &[&str], what: &str) {
    let (found, message) = run.error();
    assert_eq!(found, code, "{what}: {message}");
    for word in words {
        assert!(message.contains(word), "{what}: {message:?} does not name {word}");
    }
}

#[test]
fn an_error_carries_the_version_of_the_configuration() {
    let Some(mut node) = Node::new() else { return };
    node.version = "0.4.0";
    node.journal.lock().unwrap().refuse_allocate = true;
    let pod = Pod::new();
    let run = node.add(&pod);
    assert_eq!(run.json()["cniVersion"], "0.4.0");
    let (code, message) = run.error();
    assert_eq!(code, 11, "addresses come back: the runtime is to try again");
    assert!(message.contains("used up"), "{message}");
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let Some(mut node) = Node::new() else { return };
    let pod = Pod::new();
    let before = node.state(&pod);
    node.journal.lock().unwrap().refuse_attach = true;
    let (code, message) = node.add(&pod).error();
    assert!(code == 101 && message.contains("from_pod cannot be attached"), "{message}");
    assert_eq!(node.state(&pod), before);
    node.journal.lock().unwrap().refuse_attach = false;

    let taken = host_interface(&(pod.id.clone(), "eth0".to_owned()));
    let device = node.namespace.run(|| host::tun::open_or_create(&taken, false).unwrap()).unwrap();
    let with_device = node.state(&pod);
    let (code, message) = node.add(&pod).error();
    assert!(code == 100 && message.contains(&taken), "{message}");
    assert_eq!(node.state(&pod), with_device);
    drop(device);
    node.netlink(|netlink| async move { netlink.delete_link(&taken).await.unwrap() });

    node.agent = None;
    let start = Instant::now();
    let (code, message) = node.add(&pod).error();
    assert!(code == 11 && message.contains("agent.sock"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(node.state(&pod), before);
}

#[test]
fn an_interface_that_exists_is_an_error_and_stays() {
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    assert!(node.add(&pod).success);
    let before = node.state(&pod);
    let (code, message) = node.add(&pod).error();
    assert!(code == 100 && message.contains("eth0"), "{message}");
    assert_eq!(node.state(&pod), before, "the attachment that lives is untouched, in the agent too");
    assert_eq!(node.journal.lock().unwrap().releases, 0);
}

/// A word of the error, and what goes.
const LOSSES: [(&str, Loss); 10] = [
    ("address", |_, pod| {
        ask_in(pod.namespace(), |netlink| async move {
            let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
            let all = netlink.addresses().await.unwrap();
            let (_, address) = all.iter().find(|(index, a)| *index == eth0 && a.addr().is_ipv4()).unwrap();
            assert!(netlink.delete_address(eth0, *address).await.unwrap());
        });
    }),
    ("route", |_, pod| {
        ask_in(pod.namespace(), |netlink| async move {
            let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
            let default = Route::via("0.0.0.0/0".parse().unwrap(), [169, 254, 1, 1].into(), eth0);
            assert!(netlink.delete_route(&default).await.unwrap());
        });
    }),
    ("MTU", |_, pod| {
        ask_in(pod.namespace(), |netlink| async move {
            let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
            let change = LinkChange { mtu: Some(1000), ..LinkChange::default() };
            netlink.change_link(eth0, &change).await.unwrap();
        });
    }),
    ("no route", |node, _| {
        node.netlink(|netlink| async move {
            let all = netlink.routes(TABLE_MAIN).await.unwrap();
            let pods =
                all.iter().find(|r| r.destination.prefix_len() == 32 && r.destination.addr().is_ipv4());
            assert!(netlink.delete_route(pods.unwrap()).await.unwrap());
        });
    }),
    ("the pod has lost its neighbour 169.254.1.1", |_, pod| {
        ask_in(pod.namespace(), |netlink| async move {
            let eth0 = netlink.link("eth0").await.unwrap().unwrap().index;
            assert!(netlink.delete_neighbour(eth0, [169, 254, 1, 1].into()).await.unwrap());
        });
    }),
    ("the node has lost its neighbour 10.1.0.", |node, _| {
        node.netlink(|netlink| async move {
            for entry in netlink.neighbours().await.unwrap().iter().filter(|entry| entry.permanent) {
                netlink.delete_neighbour(entry.device, entry.address).await.unwrap();
            }
        });
    }),
    ("the node has lost its neighbour 10.1.0.", |node, _| {
        node.netlink(|netlink| async move {
            let entries = netlink.neighbours().await.unwrap();
            let entry = entries.iter().find(|entry| entry.permanent).unwrap();
            netlink.ensure_neighbour(entry.device, entry.address, Mac([2, 0, 0, 0, 0, 9])).await.unwrap();
        });
    }),
    ("from_pod is not attached", |node, _| {
        let lost = ["program from_pod is not attached", "no entry in map ENDPOINTS"];
        node.journal.lock().unwrap().lost = lost.map(str::to_owned).to_vec();
    }),
    ("eth0", |_, pod| {
        ask_in(pod.namespace(), |netlink| async move { netlink.delete_link("eth0").await.unwrap() });
    }),
    ("does not answer", |_, _| {}),
];

#[test]
fn check_finds_what_is_lost() {
    let Some(mut node) = Node::new() else { return };
    for (word, lose) in LOSSES {
        let pod = Pod::new();
        let mut config = node.config();
        config["prevResult"] = node.add(&pod).json();
        let passed = node.call("CHECK", &pod, &config);
        assert!(passed.success && passed.stdout.is_empty(), "{passed:?}");
        // Another plugin of the chain may add what it likes.
        ask_in(pod.namespace(), |netlink| async move {
            let route = Route::blackhole("192.0.2.0/24".parse().unwrap());
            netlink.ensure_route(&route).await.unwrap();
        });
        assert!(node.call("CHECK", &pod, &config).success);
        lose(&node, &pod);
        if word == "does not answer" {
            node.agent = None;
        }
        let (code, message) = node.call("CHECK", &pod, &config).error();
        assert!(code == 103 && message.contains(word), "{word}: {message}");
        let mut journal = node.journal.lock().unwrap();
        journal.lost.clear();
        let asked = journal.checked.last().unwrap();
        let address = config["prevResult"]["ips"][0]["address"].as_str().unwrap();
        assert_eq!(asked.addresses, [address.trim_end_matches("/32")]);
        assert_eq!(asked.pod_mac.len(), 6);
        drop(journal);
        node.del(&pod);
    }
    let pod = Pod::new();
    assert_eq!(node.call("CHECK", &pod, &node.config()).error().0, 7, "prevResult is needed");
    node.version = "0.3.1";
    assert_eq!(node.call("CHECK", &pod, &node.config()).error().0, 1, "CHECK came with 0.4.0");
}

#[test]
fn status_says_whether_add_can_be_served_and_keeps_no_verb_from_being_tried() {
    let Some(mut node) = Node::new() else { return };
    let status = |node: &Node| node.run(&[("CNI_COMMAND", "STATUS".to_owned())], &node.config().to_string());
    let ready = status(&node);
    assert!(ready.success && ready.stdout.is_empty(), "{ready:?}");
    let problem =
        |message: &str| api::agent::Problem { r#where: "X".to_owned(), message: message.to_owned() };
    let (full, gone) = (vec![problem("the range is used up")], vec![problem("no firewall")]);
    for (refused, lost, code, words) in [
        (full.clone(), vec![], 50, vec!["used up"]),
        (vec![], gone.clone(), 51, vec!["no firewall"]),
        (full, gone, 51, vec!["used up", "no firewall"]),
    ] {
        node.journal.lock().unwrap().ready = api::agent::ReadyResponse { refused, lost };
        expect(&status(&node), code, &words, "STATUS");
        let pod = Pod::new();
        assert!(node.add(&pod).success && node.del(&pod).success, "tried whatever STATUS says");
    }
    node.agent = None;
    let start = Instant::now();
    assert_eq!(status(&node).error().0, 50);
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    node.version = "1.0.0";
    assert_eq!(status(&node).error().0, 1, "STATUS came with 1.1.0");
}

/// Runs GC for a network with these attachments to keep, under this key.
fn gc(node: &Node, network: &str, key: &str, keep: &[&Pod]) -> Run {
    let mut config = node.config();
    config["name"] = json!(network);
    let kept = keep.iter().map(|pod| json!({"containerID": pod.id, "ifname": "eth0"}));
    config[key] = Value::Array(kept.collect());
    node.run(&[("CNI_COMMAND", "GC".to_owned())], &config.to_string())
}

/// Whose addresses are taken.
fn holders(node: &Node) -> Vec<String> {
    node.journal.lock().unwrap().allocations.keys().map(|(container, _)| container.clone()).collect()
}

#[test]
fn gc_releases_what_the_runtime_does_not_name_of_one_network_and_goes_on_after_an_error() {
    let Some(mut node) = Node::new() else { return };
    let pods: Vec<Pod> = (0..5).map(|_| Pod::new()).collect();
    let mut other = node.config();
    other["name"] = json!("storage");
    for pod in &pods[..4] {
        assert!(node.add(pod).success);
    }
    assert!(node.call("ADD", &pods[4], &other).success);
    let before = holders(&node);

    // What to keep is not said: nothing goes.
    let bare = node.run(&[("CNI_COMMAND", "GC".to_owned())], &node.config().to_string());
    expect(&bare, 7, &["cni.dev/valid-attachments"], "GC without a list");
    assert_eq!(holders(&node), before);

    let network = "k8s-cluster-network";
    node.journal.lock().unwrap().refuse_release_of = pods[0].id.clone();
    let partly = gc(&node, network, "cni.dev/valid-attachments", &[&pods[2], &pods[3]]);
    expect(&partly, 104, &["1 of 2", &pods[0].id, "the journal cannot be written"], "GC");
    assert_eq!(holders(&node), [&pods[0], &pods[2], &pods[3], &pods[4]].map(|pod| pod.id.clone()));
    node.journal.lock().unwrap().refuse_release_of.clear();
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let again = gc(&node, network, key, &[&pods[2], &pods[3]]);
        assert!(again.success && again.stdout.is_empty(), "{again:?}");
    }
    assert_eq!(holders(&node), [&pods[2], &pods[3], &pods[4]].map(|pod| pod.id.clone()));
    let releases = node.journal.lock().unwrap().releases;
    assert!(gc(&node, network, "cni.dev/attachments", &[&pods[2], &pods[3]]).success);
    assert_eq!(node.journal.lock().unwrap().releases, releases, "a second run does nothing");

    assert!(gc(&node, network, "cni.dev/attachments", &[]).success);
    assert_eq!(holders(&node), [pods[4].id.clone()], "the other network is untouched");
    assert!(gc(&node, "storage", "cni.dev/attachments", &[]).success);
    assert!(holders(&node).is_empty());

    node.version = "1.0.0";
    assert_eq!(gc(&node, network, "cni.dev/attachments", &[]).error().0, 1, "GC came with 1.1.0");
    (node.version, node.agent) = ("1.1.0", None);
    assert_eq!(gc(&node, network, "cni.dev/attachments", &[]).error().0, 11);
}
