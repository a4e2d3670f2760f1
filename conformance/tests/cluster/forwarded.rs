//! What of packets that come another way: from the host, from outside, to addresses nobody has, over a small hop?

use conformance::capture::Capture;
use conformance::command;
use std::time::Duration;

use crate::fixture::{self, NS};

#[test]
fn the_host_reaches_its_own_pods_and_is_not_proxied() {
    let Some(lab) = fixture::shop() else { return };
    let url = fixture::url(&lab, "api-server-1", "/any/path");
    assert_eq!(fixture::curl_of(lab.node_command("node-1", "curl"), &["-X", "DELETE", &url]), 200);
    assert!(fixture::access_log(&lab, "api-server-1").contains("DELETE /any/path"));
}

#[test]
fn another_node_is_a_peer_like_any_other() {
    let Some(lab) = fixture::shop() else { return };
    let url = fixture::url(&lab, "api-server-1", "/healthz");
    assert_eq!(
        fixture::curl_of(lab.node_command("node-2", "curl"), &[&url]),
        0,
        "policy does not name nodes"
    );
    let open = fixture::url(&lab, "frontend-2", "/");
    assert_eq!(
        fixture::curl_of(lab.node_command("node-1", "curl"), &[&open]),
        200,
        "no policy selects frontend-2"
    );
}

/// Anyone may look at the health of an API server, and nothing else.
const HEALTH_FOR_ALL: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: health-for-all, namespace: production}
spec:
  endpointSelector: {matchLabels: {app: api-server}}
  ingress:
    - toPorts:
        - ports: [{port: "8080", protocol: TCP}]
          rules:
            http:
              - {method: GET, path: /healthz}
"#;

#[test]
fn a_client_that_the_host_forwards_is_judged_too() {
    let Some(lab) = fixture::shop() else { return };
    let route = ["route", "add", "10.1.0.0/16", "via", "172.31.1.2"];
    let added = command::run(lab.outside_command("ip").args(route), Duration::from_secs(5)).unwrap();
    assert!(added.status.success(), "{added:?}");
    let from_outside = |method: &str, path: &str| {
        let url = fixture::url(&lab, "api-server-1", path);
        fixture::curl_of(lab.outside_command("curl"), &["-X", method, &url])
    };
    assert_eq!(from_outside("GET", "/healthz"), 0, "no rule names the world");
    lab.apply_yaml(HEALTH_FOR_ALL).unwrap();
    command::eventually(Duration::from_secs(5), || {
        let status = from_outside("GET", "/healthz");
        anyhow::ensure!(status == 200, "GET /healthz from outside got {status}");
        Ok(())
    })
    .unwrap();
    assert_eq!(from_outside("DELETE", "/healthz"), 403);
    assert_eq!(from_outside("GET", "/admin"), 403);
    assert!(!fixture::access_log(&lab, "api-server-1").contains("DELETE"));
}

#[test]
fn an_address_that_nobody_announced_gets_nothing_and_nothing_leaves() {
    let Some(lab) = fixture::shop() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("link.pcap");
    let link = Capture::start(|program| lab.outside_command(program), "node-1", &file).unwrap();
    for address in ["10.2.255.1", "10.99.0.1"] {
        assert_eq!(fixture::curl(&lab, "intruder", &[&format!("http://{address}:8080/")]), 0);
    }
    assert_eq!(link.finish().unwrap().in_clear(), 0);
}

#[test]
fn the_world_is_reached_as_the_node() {
    let Some(lab) = fixture::shop() else { return };
    let mut server = lab.outside_command("python3");
    let program = "
import socket
l = socket.socket(); l.setsockopt(1, 2, 1); l.bind(('192.0.2.1', 80)); l.listen()
while True:
    s, peer = l.accept()
    s.recv(4096); body = peer[0].encode()
    s.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s' % (len(body), body)); s.close()
";
    let server = server.args(["-c", program]).spawn().unwrap();
    let _server = command::Background(server);
    let seen = command::eventually(Duration::from_secs(5), || {
        let mut curl = lab.pod_command(NS, "frontend", "curl");
        let answer =
            command::run(curl.args(["-sS", "-m", "3", "http://192.0.2.1/"]), Duration::from_secs(5))?;
        anyhow::ensure!(answer.status.success(), "{}", answer.stderr);
        Ok(answer.stdout)
    });
    assert_eq!(seen.unwrap(), lab.node_address("node-1").unwrap().to_string());
}
