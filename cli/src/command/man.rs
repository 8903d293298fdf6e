//! `retie man`: manual pages generated from the help.

use crate::{error::Status, output};
use anyhow::{Context, ensure};
use clap::{Args, Command};
use std::path::PathBuf;

/// Print the manual page, or write one for each command
#[derive(Debug, Args)]
pub struct Man {
    /// A folder for the pages `retie.1`, `retie-convert.1` and so on; without it, the first goes to
    /// stdout
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Man {
    /// Prints or writes the pages of `command`, the whole command line.
    pub fn run(self, command: Command) -> anyhow::Result<Status> {
        let Some(folder) = self.output else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            output::data(String::from_utf8(page)?)?;
            return Ok(Status::Done);
        };
        ensure!(!folder.is_file(), "`{}` is a file, expected a folder", folder.display());
        fs_err::create_dir_all(&folder)?;
        clap_mangen::generate_to(command, &folder)
            .with_context(|| format!("the manual pages cannot be written into `{}`", folder.display()))?;
        output::wrote(&folder);
        Ok(Status::Done)
    }
}
