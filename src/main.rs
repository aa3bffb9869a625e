//! `signal-feed`: the server and its administration. Parse, run the command, end with its exit code.

fn main() -> std::process::ExitCode {
    signal_feed::cli::main()
}
