//! `retie completions`: a script that lets a shell complete commands and options.

use crate::{error::Status, output};
use clap::{Args, Command};
use clap_complete::Shell;

/// Print a script that lets a shell complete commands and options
///
/// bash: retie completions bash > ~/.local/share/bash-completion/completions/retie
/// zsh:  retie completions zsh > _retie, in a folder of $fpath
/// fish: retie completions fish > ~/.config/fish/completions/retie.fish
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    /// Prints the script for `command`, the whole command line.
    pub fn run(self, mut command: Command) -> anyhow::Result<Status> {
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        output::data(String::from_utf8(script)?)?;
        Ok(Status::Done)
    }
}
