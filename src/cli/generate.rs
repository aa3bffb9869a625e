//! `signal-feed generate`: manual pages and shell completions, from the definitions that parse the command line.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::error::{Doing, Error};
use crate::trader_bot;

/// Write the manual pages and shell completions of both programs into one directory; the package puts them in place
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  signal-feed generate target/generated")]
pub(super) struct Args {
    /// Where to write them; created if missing
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    for program in [super::command(), trader_bot::command()] {
        write(program, &args.directory).doing(format!("write into {}", args.directory.display()))?;
    }
    Ok(())
}

fn write(program: Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let name = program.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut program.clone(), &name, directory)?;
    }
    let mut program = program.disable_help_subcommand(true);
    program.build();
    write_pages(&program, directory)
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
