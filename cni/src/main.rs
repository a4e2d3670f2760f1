//! The CNI plugin of a node: see the library.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let output = cni::answer(|name| std::env::var_os(name), std::io::stdin().lock());
    for warning in &output.warnings {
        eprintln!("mesh-cni: {warning}");
    }
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(output.stdout.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        eprintln!("mesh-cni: the result could not be written");
        return ExitCode::FAILURE;
    }
    if output.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
