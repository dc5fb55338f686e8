//! The node agent's binary.

fn main() -> std::process::ExitCode {
    match node_agent::commands::main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // On a line of its own and without a trace: it is for the operator who started it.
            eprintln!("node-agent: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
