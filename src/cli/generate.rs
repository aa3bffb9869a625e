//! `signal-feed generate`: manual pages and shell completions, from the definitions that parse the command line.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, say};
use crate::error::{Doing, Error};
use crate::trader_bot;

/// Each shell's directory for completions below a prefix, and the text before and after the program's name.
const COMPLETIONS: [(Shell, &str, &str, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions", "", ""),
    (Shell::Zsh, "share/zsh/site-functions", "_", ""),
    (Shell::Fish, "share/fish/vendor_completions.d", "", ".fish"),
];
const MANUAL: &str = "share/man/man1";

/// Write the manual pages and shell completions of both programs
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Write the manual pages and shell completions of both programs\n\n\
        Writes them where man, bash, zsh and fish look for them below DIRECTORY: share/man/man1, \
        share/bash-completion/completions, share/zsh/site-functions and share/fish/vendor_completions.d. \
        Replaces files that exist. The Debian package has them already.",
    after_help = "Examples:\n  sudo signal-feed generate /usr/local    # for all users\n  signal-feed generate ~/.local           # for one user"
)]
pub(super) struct Args {
    /// Where to write them, such as /usr/local; created if missing
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    for program in [Cli::command(), trader_bot::command()] {
        write_completions(&program, &args.directory)?;
        let directory = make_directory(&args.directory, MANUAL)?;
        let mut program = program.disable_help_subcommand(true);
        program.build();
        write_pages(&program, &directory)?;
    }
    Ok(())
}

fn write_completions(program: &Command, prefix: &Path) -> Result<(), Error> {
    let name = program.get_name();
    for (shell, place, before, after) in COMPLETIONS {
        let path = make_directory(prefix, place)?.join(format!("{before}{name}{after}"));
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut program.clone(), name, &mut script);
        fs::write(&path, script).doing(format!("write {}", path.display()))?;
        say(path.display());
    }
    Ok(())
}

/// One page per command, named after its program and itself: `signal-feed-key-mint.1`.
fn write_pages(command: &Command, directory: &Path) -> Result<(), Error> {
    for command in command.get_subcommands() {
        write_pages(command, directory)?;
    }
    let version = concat!("signal-feed ", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command.clone()).source(version).manual("signal-feed");
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim_start();
    let path = directory.join(page.get_filename());
    let write = |mut file: File| -> io::Result<()> {
        page.render_title(&mut file)?;
        page.render_name_section(&mut file)?;
        section("SYNOPSIS", usage).to_writer(&mut file)?;
        page.render_description_section(&mut file)?;
        page.render_options_section(&mut file)?;
        if command.has_subcommands() {
            page.render_subcommands_section(&mut file)?;
        }
        // `Examples:` and the lines that follow it.
        let below = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (_, examples) = below.split_once('\n').unwrap_or_default();
        section("EXAMPLES", examples).to_writer(&mut file)
    };
    File::create(&path).and_then(write).doing(format!("write {}", path.display()))?;
    say(path.display());
    Ok(())
}

/// Text that keeps its lines; empty if there is none.
fn section(heading: &str, text: &str) -> Roff {
    let mut section = Roff::default();
    if !text.is_empty() {
        section.control("SH", [heading]).control("nf", []);
        for line in text.lines() {
            section.text([roman(line.trim_start())]);
        }
        section.control("fi", []);
    }
    section
}

fn make_directory(prefix: &Path, place: &str) -> Result<PathBuf, Error> {
    let directory = prefix.join(place);
    fs::create_dir_all(&directory).doing(format!("make {}", directory.display()))?;
    Ok(directory)
}
