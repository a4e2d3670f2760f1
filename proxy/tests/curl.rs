//! The real curl, whose HTTP/2 forgets an answer that a reset follows (7.88, Debian 12).

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use common::{FRONTEND, Rig, shop_policy_with};
use serde_json::json;

/// Long enough that it is not in any buffer when the answer comes.
const BODY: usize = 4 * 1024 * 1024;

/// Status and exit code of an upload.
fn upload(rig: &Rig, body: &tempfile::NamedTempFile, path: &str, more: &[&str]) -> (String, Option<i32>) {
    let output = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code} %header{grpc-status}", "-m", "10"])
        .args(["--http2-prior-knowledge", "--noproxy", "*", "--interface", &FRONTEND.to_string()])
        .args(["--data-binary", &format!("@{}", body.path().display())])
        .args(more)
        .arg(format!("http://{}{path}", rig.address))
        .output()
        .expect("curl");
    (String::from_utf8_lossy(&output.stdout).trim().to_owned(), output.status.code())
}

#[test]
fn a_refused_upload_has_its_answer_every_time() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(std::env::var_os("MESH_REQUIRE_ALL").is_none(), "curl is not there");
        return println!("skipped: curl is not there");
    }
    // Nothing listens there.
    let closed: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut rig = Rig::new(closed, 8080);
    rig.apply(2, Some(shop_policy_with(json!([{ "path": "/open" }]))));
    let mut body = tempfile::NamedTempFile::new().unwrap();
    body.write_all(&vec![b'x'; BODY]).unwrap();
    // An answer of 200 stops no upload of curl's, so the answer comes behind it.
    let mut short = tempfile::NamedTempFile::new().unwrap();
    short.write_all(b"\0\0\0\0\x01x").unwrap();
    for _ in 0..10 {
        for (body, path, more, expected) in [
            (&body, "/closed", &[][..], "403"),
            (&short, "/closed", &["-H", "Content-Type: application/grpc"], "200 7"),
            (&body, "/closed/%zz", &[], "400"),
            (&body, "/open", &[], "503"),
        ] {
            assert_eq!(upload(&rig, body, path, more), (expected.to_owned(), Some(0)), "{path} {more:?}");
        }
    }
}
