//! `make demo`: the main job end to end, in a lab, with the proof of each claim.

fn main() -> std::process::ExitCode {
    match conformance::demo::run() {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
