//! `trader-bot`: the reference consumer. Parse, run, end with its exit code.

fn main() -> std::process::ExitCode {
    signal_feed::trader_bot::main()
}
