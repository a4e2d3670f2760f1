//! Are connections opened, reused and closed without loss?

use crate::fixture::{self, NS};

/// Opens a connection from one fixed source port again and again, without a pause, and asks once on each.
/// Prints how many were answered as they should be.
const SAME_PORT: &str = r"
import socket, struct, sys, errno, time
host, times, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ok = 0
for i in range(times):
    for attempt in range(2000):
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.settimeout(5)
        try:
            s.bind(('', 43210)); s.connect((host, 8080)); break
        except OSError as e:
            s.close()
            # The pod's own stack still holds the port: not what is tested here.
            if e.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE): raise
            time.sleep(0.0005)
    s.sendall(b'GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: %s\r\n\r\n' % (b'close' if how == 'server' else b'keep-alive'))
    got = b''
    while b'}' not in got:
        more = s.recv(4096)
        if not more: break
        got += more
    me = '%s:%d' % s.getsockname()
    if got.startswith(b'HTTP/1.1 200') and me.encode() in got: ok += 1
    else: print('round', i, got[:200], me, file=sys.stderr)
    if how == 'server': s.recv(1)
    if how == 'reset': s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.close()
print(ok)
";

#[test]
fn the_same_source_port_at_once_again() {
    let Some(lab) = fixture::shop() else { return };
    for server in ["api-server-1", "api-server-2"] {
        let address = lab.pod_address(NS, server).unwrap().to_string();
        for how in ["client", "server", "reset"] {
            let said = fixture::python(&lab, "frontend", SAME_PORT, &[&address, "200", how]);
            assert_eq!(said.stdout.trim(), "200", "{server}, closed by {how}: {}", said.stderr);
        }
    }
}

/// Short connections, one request each; prints how many were answered.
const SHORT: &str = r"
import socket, sys
host, times = sys.argv[1], int(sys.argv[2])
ok = 0
for i in range(times):
    s = socket.create_connection((host, 8080), 5)
    s.sendall(b'GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
    got = b''
    while True:
        more = s.recv(4096)
        if not more: break
        got += more
    s.close()
    if got.startswith(b'HTTP/1.1 200') and got.endswith(b'}'): ok += 1
print(ok)
";

#[test]
fn ten_thousand_short_connections() {
    let Some(lab) = fixture::shop() else { return };
    let address = lab.pod_address(NS, "api-server-1").unwrap().to_string();
    let said = fixture::python(&lab, "frontend", SHORT, &[&address, "10000"]);
    assert_eq!(said.stdout.trim(), "10000", "{}", said.stderr);
    let log = fixture::access_log(&lab, "api-server-1");
    assert_eq!(log.lines().filter(|line| line.contains("/healthz")).count(), 10_000);
}
