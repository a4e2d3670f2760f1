//! What the parsers of a real server make of targets: Python's, which the tests have anyway.

use std::io::Write;
use std::process::{Command, Stdio};

/// Reads targets, one a line in hexadecimal; answers each with what its parsers see, likewise, in
/// one line.
const PROGRAM: &str = r#"
import posixpath, sys, types
from http.server import SimpleHTTPRequestHandler
from urllib.parse import unquote, urlparse, urlsplit
handler = types.SimpleNamespace(directory="")
for line in sys.stdin:
    target = bytes.fromhex(line).decode()
    path = target.split("?", 1)[0]
    found = {
        path, unquote(path), unquote(unquote(path)), urlsplit(target).path or "/", urlparse(target).path or "/",
        unquote(urlsplit(target).path) or "/", posixpath.normpath("/" + path.lstrip("/")),
        "/" + SimpleHTTPRequestHandler.translate_path(handler, target).lstrip("/"),
        "/" + SimpleHTTPRequestHandler.translate_path(handler, "/" + target.lstrip("/")).lstrip("/"),
    }
    print(" ".join(path.encode().hex() for path in sorted(found)))
"#;

/// For each target what Python sees; None, and a line that says so, without it.
pub(crate) fn python(targets: &[String]) -> Option<Vec<Vec<String>>> {
    let child =
        Command::new("python3").args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        assert!(
            std::env::var_os("MESH_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "MESH_REQUIRE_ALL=1, but this machine lacks something: no python3"
        );
        println!("skipped: no python3");
        return None;
    };
    let hex = |text: &String| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let input: String = targets.iter().map(hex).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    writer.join().unwrap();
    let text = |word: &str| {
        let bytes = (0..word.len()).step_by(2).map(|at| u8::from_str_radix(&word[at..at + 2], 16).unwrap());
        String::from_utf8(bytes.collect()).unwrap()
    };
    Some(output.lines().map(|line| line.split(' ').map(text).collect()).collect())
}
