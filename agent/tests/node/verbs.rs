//! What the plugin's CHECK, STATUS and GC ask of the agent, and pods that vanish without DEL.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use api::agent::{Attachment, AttachmentsRequest, CheckRequest, Problem, ReadyRequest, ReadyResponse};

use crate::fixture::{LIMIT, Node, can_run, eventually, node_manifest, pod_manifest};

async fn ready(node: &Node) -> ReadyResponse {
    node.cni().ready(ReadyRequest {}).await.unwrap().into_inner()
}

/// STATUS, as soon as it is as it should be.
async fn ready_when(node: &Node, what: &str, is_so: impl Fn(&ReadyResponse) -> bool) -> ReadyResponse {
    let start = Instant::now();
    loop {
        let answer = node.cni().ready(ReadyRequest {}).await.map(tonic::Response::into_inner);
        match answer {
            Ok(answer) if is_so(&answer) => return answer,
            other => assert!(start.elapsed() < LIMIT, "{what}: {other:?}\n{}", node.log()),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn said(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{}: {}\n", problem.r#where, problem.message)).collect()
}

/// Of a small node: five addresses.
fn small() -> String {
    node_manifest(1).replace("10.1.0.0/16", "10.1.0.0/29")
}

async fn check(node: &Node, container: &str, index: u32, address: IpAddr) -> Vec<String> {
    let request = CheckRequest {
        attachment: Some(Attachment { container_id: container.into(), interface: "eth0".into() }),
        host_ifindex: index,
        pod_mac: vec![2, 0, 0, 0, 0, 1],
        addresses: vec![address.to_string()],
    };
    node.cni().check(request).await.unwrap().into_inner().lost
}

fn pins_of(node: &Node, device: &str) -> usize {
    let pins = std::fs::read_dir(node.pins.join("links")).unwrap().flatten();
    pins.filter(|entry| entry.file_name().to_string_lossy().starts_with(device)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_vanishes_without_del_is_released_and_its_address_rests() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("nodes", &small());
    node.apply("pods", &["a", "b"].map(pod_manifest).join("---\n"));
    node.start().await;
    let (gone, _) = node.add("one", "a").await;
    let (stays, _) = node.add("two", "b").await;
    let device = node.allocate("one", "a").await.host_interface;
    let index = node.netlink.link(&device).await.unwrap().unwrap().index;
    // The ADD is over, as far as the agent knows.
    node.attach("one", index).await.unwrap();
    assert_eq!(pins_of(&node, &device), 2);
    node.end("one");
    let took = eventually("released", || {
        node.maps().endpoints().unwrap().iter().map(|(address, _)| *address).collect::<Vec<_>>() == [stays]
    })
    .await;
    eprintln!("released after {took:?}");
    assert_eq!(pins_of(&node, &device), 0);
    assert_eq!(node.print("ip", &["route", "show", &gone.to_string()]), "");
    let announced = node.path("manifests/status/pods/default_a.json");
    eventually("withdrawn", || !announced.exists()).await;
    assert!(!node.release("one").await, "nothing is left for a late DEL");

    // All the others, but not the one that rests.
    let mut left = Vec::new();
    while let Ok(allocated) = node.try_allocate(&format!("c{}", left.len()), "c").await {
        left.push(allocated.address.parse::<IpAddr>().unwrap());
    }
    assert!(left.len() == 3 && !left.contains(&gone), "{left:?} after {gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_pool_says_what_to_do_and_status_says_so_before() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("nodes", &small());
    node.start().await;
    ready_when(&node, "ready", |answer| answer.refused.is_empty() && answer.lost.is_empty()).await;
    for number in 0..5 {
        node.allocate(&format!("c{number}"), "p").await;
    }
    let full = node.try_allocate("more", "p").await.unwrap_err();
    assert_eq!(full.code(), tonic::Code::ResourceExhausted);
    for words in ["10.1.0.0/29", "of its 5 5 are in use", "delete pods", "spec.podCIDR"] {
        assert!(full.message().contains(words), "{full}");
    }
    let answer = ready(&node).await;
    assert!(said(&answer.refused).contains(full.message()) && answer.lost.is_empty(), "{answer:?}");
    let taken = node.cni().attachments(AttachmentsRequest { network: "pods".into() }).await.unwrap();
    let taken = taken.into_inner().attachments;
    assert!(taken.len() == 5 && taken.iter().all(|taken| taken.container_id != "more"), "{taken:?}");
    assert!(node.release("c0").await);
    let resting = ready(&node).await;
    assert!(said(&resting.refused).contains("of its 5 4 are in use and 1"), "{resting:?}");
    node.apply("nodes", &node_manifest(1));
    ready_when(&node, "a larger range", |answer| answer.refused.is_empty()).await;
    node.allocate("more", "p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_knows_a_missing_node_object_a_full_disk_and_a_lost_datapath() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    std::fs::remove_file(node.path("manifests/nodes.yaml")).unwrap();
    // A folder of its own size: nothing else of the machine is filled.
    let state = node.path("state");
    std::fs::create_dir(&state).unwrap();
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).status().unwrap();
    assert!(mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs", state.to_str().unwrap()]).success());
    let _mounted = Mounted(&state);
    node.spawn(None);
    let answer = ready_when(&node, "not ready", |answer| !answer.refused.is_empty()).await;
    assert!(said(&answer.refused).contains("node-1"), "{answer:?}");
    node.apply("nodes", &node_manifest(1));
    ready_when(&node, "ready", |answer| answer.refused.is_empty() && answer.lost.is_empty()).await;

    let start = Instant::now();
    ready(&node).await;
    eprintln!("STATUS took {:?}", start.elapsed());
    let filler = state.join("filler");
    let _ = std::fs::write(&filler, vec![1; 2 << 20]);
    let full = ready(&node).await;
    assert!(said(&full.refused).contains("No space left"), "{full:?}");
    assert!(said(&full.refused).contains(state.to_str().unwrap()), "{full:?}");
    std::fs::remove_file(&filler).unwrap();
    ready_when(&node, "room again", |answer| answer.refused.is_empty()).await;
    assert!(!state.join(".probe").exists());

    // A folder in the place of a pin: the program cannot be pinned again.
    let pin = node.pins.join("links/uplink_from_uplink");
    std::fs::remove_file(&pin).unwrap();
    std::fs::create_dir(&pin).unwrap();
    let lost = ready_when(&node, "lost", |answer| !answer.lost.is_empty()).await;
    assert!(said(&lost.lost).contains("from_uplink"), "{lost:?}");
    std::fs::remove_dir(&pin).unwrap();
    ready_when(&node, "repaired", |answer| answer.lost.is_empty()).await;
}

/// Unmounted when the test ends, however it ends.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_lost_of_a_pod_and_its_node() {
    if !can_run() {
        return;
    }
    let mut node = Node::new().await;
    node.apply("pods", &pod_manifest("a"));
    node.start().await;
    let (address, _) = node.add("one", "a").await;
    let device = node.allocate("one", "a").await.host_interface;
    let index = node.netlink.link(&device).await.unwrap().unwrap().index;
    // The plugin's part.
    node.print("ip", &["route", "add", "10.1.0.2/32", "dev", &device, "scope", "link", "proto", "83"]);
    let mac = "02:00:00:00:00:01";
    node.print("ip", &["neigh", "replace", "10.1.0.2", "lladdr", mac, "dev", &device, "nud", "permanent"]);
    assert_eq!(check(&node, "one", index, address).await, [""; 0]);

    type Loss<'a> = (&'a str, &'a dyn Fn(&Node));
    let losses: [Loss<'_>; 3] = [
        ("program from_pod is not attached", &|node| {
            std::fs::remove_file(node.pins.join(format!("links/{device}_from_pod"))).unwrap();
        }),
        ("program to_pod is not attached", &|node| {
            std::fs::remove_file(node.pins.join(format!("links/{device}_to_pod"))).unwrap();
        }),
        ("map ENDPOINTS", &|node| {
            assert!(node.maps().remove_endpoint(address).unwrap());
        }),
    ];
    for (word, lose) in losses {
        lose(&node);
        let lost = check(&node, "one", index, address).await;
        assert!(lost.iter().any(|lost| lost.contains(word)), "{word}: {lost:?}");
    }
    eventually("written again after the CHECK", || {
        node.maps().endpoints().unwrap().iter().any(|(known, _)| *known == address)
    })
    .await;
    for (container, index, address, word) in [
        ("two", index, address, "no record"),
        ("one", index + 1, address, "has recorded device"),
        ("one", index, "10.1.0.9".parse().unwrap(), "has recorded 10.1.0.2"),
    ] {
        let lost = check(&node, container, index, address).await;
        assert!(lost.iter().any(|lost| lost.contains(word)), "{word}: {lost:?}");
    }
    node.print("ip", &["link", "del", &device]);
    let lost = check(&node, "one", index, address).await;
    assert!(lost.iter().any(|lost| lost.contains("is missing")), "{lost:?}");
}
