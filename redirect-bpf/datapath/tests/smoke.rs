#[test]
fn loads() {
    let dir = std::path::PathBuf::from(format!("/sys/fs/bpf/selvage-test-{}-smoke", std::process::id()));
    let r = datapath::Datapath::open(&dir);
    if let Err(e) = &r {
        let mut s: Option<&dyn std::error::Error> = Some(e);
        while let Some(x) = s { eprintln!("{x}"); s = x.source(); }
    }
    let ok = r.is_ok();
    drop(r);
    datapath::remove_pins(&dir).unwrap();
    assert!(ok);
}
