//! Writes the manual pages and shell completions of both programs into a directory, from the definitions that parse the
//! command lines: `cargo run --example generate -- DIRECTORY`. `.ci/package` runs it; it is no part of the programs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

fn main() -> io::Result<()> {
    let directory = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("expected a directory"))?;
    write_all(Path::new(&directory))
}

/// Writes every page and completion. Makes the directory if it is missing.
///
/// # Errors
/// If a file cannot be written.
pub fn write_all(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for mut program in [signal_feed::cli::command(), signal_feed::trader_bot::command()] {
        let name = program.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut program.clone(), &name, directory)?;
        }
        program = program.disable_help_subcommand(true);
        program.build();
        write_pages(&program, directory)?;
    }
    Ok(())
}

/// One page per command, named after its program and itself: `signal-feed-key-mint.1`.
fn write_pages(command: &Command, directory: &Path) -> io::Result<()> {
    for command in command.get_subcommands() {
        write_pages(command, directory)?;
    }
    let page = Man::new(command.clone()).source(concat!("signal-feed ", env!("CARGO_PKG_VERSION")));
    let mut file = File::create(directory.join(page.get_filename()))?;
    page.render_title(&mut file)?;
    page.render_name_section(&mut file)?;
    page.render_synopsis_section(&mut file)?;
    page.render_description_section(&mut file)?;
    page.render_options_section(&mut file)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut file)?;
    }
    // The library's own section would run the lines of the examples together.
    let after_help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut examples = Roff::default();
    examples.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in after_help.lines().skip(1) {
        examples.text([roman(line.trim_start())]);
    }
    examples.control("fi", []).to_writer(&mut file)
}
