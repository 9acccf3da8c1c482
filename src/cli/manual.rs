//! Man pages and shell completions of a command line, made from its description in clap.

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use std::io;
use std::path::Path;

/// A shell for which completions can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    /// bash.
    Bash,
    /// fish.
    Fish,
    /// zsh.
    Zsh,
}

/// Returns the completion script of a program for a shell.
pub fn completions(shell: CompletionShell, mut command: Command) -> String {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Fish => Shell::Fish,
        CompletionShell::Zsh => Shell::Zsh,
    };
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a man page of a program, and one of each subcommand, to a directory, which is created if it is missing.
///
/// # Errors
///
/// Returns an error if a file cannot be written.
pub fn write_man_pages(directory: &Path, command: Command) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command.disable_help_subcommand(true), directory)
}
