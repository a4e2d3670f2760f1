//! Does each request meet the fate that policy gives it, and does the server see its true client?

use conformance::demo::{SERVERS, cases};
use conformance::request::{self, Outcome};
use conformance::shop;
use lab::{Lab, LabOptions};

use crate::fixture::{self, NS};

#[test]
fn every_case_of_the_example_from_both_nodes() {
    let Some(lab) = fixture::shop() else { return };
    every_case(&lab);
}

#[test]
fn every_case_of_the_example_without_encryption() {
    let options =
        LabOptions { manifests: Some(shop::manifests()), encryption: false, ..LabOptions::default() };
    let Some(lab) = fixture::lab_of(options) else { return };
    every_case(&lab);
}

fn every_case(lab: &Lab) {
    for case in cases() {
        for (place, server) in SERVERS {
            let to = lab.pod_address(NS, server).unwrap();
            let in_pod = |program: &str| lab.pod_command(NS, case.client, program);
            let answer = request::send(in_pod, to, &case.request).unwrap();
            assert_eq!(answer.outcome, case.expected, "{} {} ({place} node)", case.client, case.request);
            if case.expected == Outcome::Status(200) {
                let client = format!("{}:{}", lab.pod_address(NS, case.client).unwrap(), answer.client_port);
                assert!(answer.body.contains(&client), "{server} saw {} instead of {client}", answer.body);
            }
        }
    }
}

#[test]
fn a_refused_request_never_reaches_the_server() {
    let Some(lab) = fixture::shop() else { return };
    for server in ["api-server-1", "api-server-2"] {
        for path in
            ["/secret", "/api/v1/products/../../secret", "/api/v1/products%2f..%2f..%2fsecret", "//secret"]
        {
            let url = fixture::url(&lab, server, path);
            let status = fixture::curl(&lab, "frontend", &["--path-as-is", &url]);
            assert!(matches!(status, 400 | 403), "{path} got {status}");
        }
        assert_eq!(fixture::curl(&lab, "frontend", &[&fixture::url(&lab, server, "/healthz")]), 200);
        let log = fixture::access_log(&lab, server);
        assert!(log.contains("/healthz") && !log.contains("secret"), "{server} was asked: {log}");
    }
}

#[test]
fn what_is_not_http_gets_400_and_the_end() {
    let Some(lab) = fixture::shop() else { return };
    let server = lab.pod_address(NS, "api-server-1").unwrap().to_string();
    let said = fixture::python(
        &lab,
        "frontend",
        r"
import socket, sys
s = socket.create_connection((sys.argv[1], 8080), 3)
s.sendall(b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is not HTTP\r\n\r\n')
got = b''
while True:
    more = s.recv(4096)
    if not more: break
    got += more
print(got.split(b'\r\n')[0].decode())
",
        &[&server],
    );
    assert!(said.stdout.starts_with("HTTP/1.1 400"), "{said:?}");
    assert!(fixture::access_log(&lab, "api-server-1").is_empty());
}
