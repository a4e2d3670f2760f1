//! Compiles the messages with `protox`, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["agent.proto", "policy.proto", "observer.proto", "flow.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().include_file("messages.rs").compile_fds(descriptors)?;
    Ok(())
}
