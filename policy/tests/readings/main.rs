//! How request targets are judged: against tables, and against a model of what servers do to them.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod model;
mod origins;

use std::collections::BTreeSet;

use policy::{Pattern, Readings, TargetProblem};

/// The verdict of a rule on the path alone.
fn allowed(rule: &str, target: &str) -> Result<bool, TargetProblem> {
    let rule = Pattern::new(rule).unwrap();
    Readings::of(target).map(|readings| readings.iter().all(|reading| rule.matches(reading)))
}

/// What servers read as `/admin`, or as something else outside of `/public/`.
const TO_ADMIN: &[&str] = &[
    "/public/../admin",
    "/public/%2e%2e/admin",
    "/public/%2E./admin",
    "/public/.%2e/admin",
    "/public/..;/admin",
    "/public/..;x=1/admin",
    "/public/..%3B/admin",
    "/public/%2e%2e;x/admin",
    "/public%2f..%2fadmin",
    "/public/..%2fadmin",
    "/public/..%2Fadmin",
    "/public/..\\admin",
    "/public/..%5cadmin",
    "/public/..%5Cadmin",
    "/public\\..\\admin",
    "/public/x/..//../admin",
    "/public//../admin",
    "/public/;/../../admin",
    "/public/;x=1/%2e%2e/../admin",
    "/public/%252e%252e/admin",
    "/public/..%252fadmin",
    "/public/%25%32%65%25%32%65/admin",
    "/public/..%c0%afadmin",
    "/public/%c0%ae%c0%ae/admin",
    "/public/%e0%80%ae%e0%80%ae%e0%80%afadmin",
    "/public/./../admin",
    "/public/a/../../admin?x=/public/y",
    "/public/..",
    "/public/x/..",
    "/admin/../public/x",
    "/admin/%2e%2e/public/x",
    "/admin%2f../public/x",
    "/admin;/../public/x",
    "/admin/..;/public/x",
    "/%70ublic/x",
    "/./public/x",
    "//public/x",
    "//admin/public/x",
    "/\\admin/public/x",
    "/%2fpublic/x",
    "http://host/public/x",
    "http://host/admin/../public/x",
    "*",
];

/// Each of these reaches the handler of `/admin` in some server, or the one for everything.
#[test]
fn no_spelling_reaches_what_no_rule_allows() {
    for target in TO_ADMIN {
        assert_ne!(allowed("/public/.*", target), Ok(true), "{target}");
    }
    let health = [
        "/x/../healthz",
        "/%68ealthz",
        "/admin/delete/1/../../../healthz",
        "/healthz/.",
        "/healthz/x/..",
        "/healthz;x",
        "/healthz;/../admin",
        "/healthz?x",
        "//healthz",
        "/./healthz",
        "\\healthz",
        "http://host/healthz",
        "HTTP://host/healthz",
    ];
    for target in health {
        assert_ne!(allowed("/healthz", target), Ok(true), "{target}");
    }
    // Rules on the end of a path.
    for target in
        ["/admin;.css", "/admin;/x.css", "/admin/x/..;.css", "/admin%3b.css", "/admin/..;/admin;a/.css"]
    {
        assert_eq!(allowed(r"/[a-z/]*\.css", target), Ok(false), "{target}");
    }
}

#[test]
fn what_every_server_reads_as_allowed_passes() {
    for (rule, target) in [
        (".*", "/"),
        (".*", "*"),
        (".*", "/@scope%2fname"),
        (".*", "/@scope%2Fname?x=%2e%2e"),
        ("/api/v4/.*", "/api/v4/projects/group%2Fsub%2Fproject/repository/files/src%2Fmain%2Ers/raw?ref=x"),
        ("/api/v4/projects/[^/]+(/.*)?", "/api/v4/projects/group%2Fproject"),
        ("/api/.*", "/api/queues/%2f/name"),
        ("/job/.*", "/job/feature%252Fx/1"),
        (".*", "//public//x"),
        ("/.*", "//public/x"),
        ("/.*", "/a//b"),
        (".*", "/%E9"),
        (".*", "/caf%c3%a9"),
        (".*", "/caf\u{e9}?q=\u{e9}"),
        ("/caf\u{e9}", "/caf\u{e9}"),
        (".*", "/a%ff"),
        (".*", "/%c0%af"),
        ("/public/.*", "/public/100%25"),
        ("/public/.*", "/public/a%20b"),
        ("/public/a%20b", "/public/a%20b"),
        ("/public/.*", "/public/x;jsessionid=1"),
        ("/public/.*", "/public/x;v=1/y"),
        ("/public/.*", "/public/me%40example.com"),
        ("/public/.*", "/public/a/../b"),
        ("/public/.*", "/public/a/./b"),
        ("/public/.*", "/public/.well-known/x"),
        ("/public/.*", "/public/..x/..."),
        ("/public/.*", "/public/x?next=/../admin"),
        ("/public/.*", "/public/x?next=//admin&y=..;/..\\%2f%zz%"),
        ("/public/.*", "/public/x?q=%00%0a"),
        (".*", "http://host/public/x"),
        ("(http://host)?/public/.*", "http://host/public/x"),
        (".*", "http://host"),
    ] {
        assert_eq!(allowed(rule, target), Ok(true), "{rule} on {target}");
    }
}

#[test]
fn what_is_malformed_is_named() {
    for (target, expected) in [
        ("", TargetProblem::NotAbsolute),
        ("a", TargetProblem::NotAbsolute),
        ("?x", TargetProblem::NotAbsolute),
        ("a:80", TargetProblem::NotAbsolute),
        ("\\a", TargetProblem::NotAbsolute),
        ("://a/", TargetProblem::NotAbsolute),
        ("/a#b", TargetProblem::Fragment),
        ("/a?x#b", TargetProblem::Fragment),
        ("/a b", TargetProblem::ControlByte),
        ("/a?x y", TargetProblem::ControlByte),
        ("/a\tb", TargetProblem::ControlByte),
        ("/a\u{7f}", TargetProblem::ControlByte),
        ("/a\0", TargetProblem::ControlByte),
        ("/a?\0", TargetProblem::ControlByte),
        ("/a%00/x", TargetProblem::ControlByte),
        ("/a%0d%0aX", TargetProblem::ControlByte),
        ("/a%7F", TargetProblem::ControlByte),
        ("/a%2500.css", TargetProblem::ControlByte),
        ("/a%", TargetProblem::BadEscape),
        ("/a%4", TargetProblem::BadEscape),
        ("/a%zz", TargetProblem::BadEscape),
        ("/a%+1", TargetProblem::BadEscape),
        ("/a%u002f", TargetProblem::BadEscape),
        ("http://host/a%zz", TargetProblem::BadEscape),
        ("/..", TargetProblem::ClimbsOut),
        ("/../public", TargetProblem::ClimbsOut),
        ("/%2e%2e/", TargetProblem::ClimbsOut),
        ("/a/../../b", TargetProblem::ClimbsOut),
        ("/a/..%2f..", TargetProblem::ClimbsOut),
        ("/a/..\\..\\b", TargetProblem::ClimbsOut),
        ("/..;/b", TargetProblem::ClimbsOut),
        ("/a//../../b", TargetProblem::ClimbsOut),
        ("/%252e%252e/b", TargetProblem::ClimbsOut),
        ("//../a", TargetProblem::ClimbsOut),
        ("http://host/../a", TargetProblem::ClimbsOut),
    ] {
        assert_eq!(Readings::of(target), Err(expected), "{target}");
    }
}

/// An ordinary target is what most requests have: it has one reading, and needs no memory.
#[test]
fn an_ordinary_target_is_its_only_reading() {
    for target in [
        "/",
        "*",
        "/a/b",
        "/a/b/",
        "/a?x=/../b",
        "/a?x=%2f\\%zz;//",
        "/a%20b%c3%a9%E9%25",
        "/.hidden/..x/...",
        "/com.example.Orders/Create",
        "/v1/things/1:cancel",
        "/@scope/name",
        "/\u{e9}",
    ] {
        let readings = Readings::of(target).unwrap();
        assert_eq!(readings.iter().collect::<Vec<_>>(), [target]);
    }
}

#[test]
fn the_number_of_readings_is_bounded() {
    let many = "/a;b%2f.%2e;/%252e//\\%61;%c0%af".repeat(40);
    let long = format!("/{}", "%2e%2fa;".repeat(8_000));
    for target in [many.as_str(), &long] {
        assert_eq!(Readings::of(target), Err(TargetProblem::TooManyReadings));
    }
    // Long, with one kind of ambiguity as it is met.
    let key = format!("/bucket/{}", "folder%2F".repeat(800));
    assert!(Readings::of(&key).is_ok());
}

/// Whatever a server makes of a target by steps of its own, in any order, is one of the readings.
#[test]
fn servers_of_all_kinds_see_one_of_the_readings() {
    let mut random = model::Random(0x5e1f_a6e5);
    let (mut compared, mut refused) = (0, 0);
    for _ in 0..2_000 {
        let target = random.target();
        let readings = match Readings::of(&target) {
            Ok(readings) => readings,
            Err(problem) => {
                // A refusal is right: but most targets must be judged, or this compares nothing.
                refused += usize::from(problem != TargetProblem::BadEscape);
                continue;
            }
        };
        let known: BTreeSet<String> = readings.iter().map(model::canonical).collect();
        for _ in 0..20 {
            let server = random.server();
            if let Some(seen) = model::serve(&server, &target) {
                compared += 1;
                let seen = model::canonical(&seen);
                assert!(known.contains(&seen), "{target} is {seen} after {server:?}, not one of {known:#?}");
            }
        }
    }
    assert!(compared > 8_000 && refused < 1_250, "{compared} compared, {refused} refused");
}

#[test]
fn what_a_real_server_sees_is_one_of_the_readings() {
    let mut random = model::Random(0x0dd_ba11);
    let mut targets: Vec<String> = (0..1_500).map(|_| random.target()).collect();
    targets.retain(|target| Readings::of(target).is_ok());
    let Some(answers) = origins::python(&targets) else { return };
    assert!(answers.len() == targets.len() && answers.len() > 500);
    for (target, seen) in targets.iter().zip(answers) {
        let path = |text: &str| model::canonical(text.split('?').next().unwrap_or_default());
        let known: BTreeSet<String> = Readings::of(target).unwrap().iter().map(path).collect();
        // A slash at the end is no other path to Python, nor what it replaces because it is not
        // UTF-8.
        let known_without: BTreeSet<&str> = known.iter().map(|path| path.trim_end_matches('/')).collect();
        for seen in seen.iter().filter(|seen| !seen.contains('\u{fffd}')) {
            let seen = model::canonical(seen);
            let found = known_without.contains(seen.trim_end_matches('/'));
            assert!(found, "{target} is {seen}, not one of {known:#?}");
        }
    }
}
