//! The help of a verb, made to fit a screen: one line for each option, with the name of its value. argh's own help
//! starts descriptions at column 20, wraps them, and does not name values.

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};

/// The help of a verb. `usage` is the first line of argh's own help, the only part that `verb` lacks.
pub fn of_verb(usage: &str, verb: &CommandInfoWithArgs) -> String {
    let rows = rows(verb);
    let widths = rows.iter().map(|(name, _)| name.chars().count());
    let width = widths.max().unwrap_or_default();
    let rows = rows.iter().map(|(name, about)| {
        let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("  {name:width$}  {about}")
    });
    let rows = rows.collect::<Vec<_>>().join("\n");
    let (notes, examples) = (verb.notes.join("\n"), verb.examples.join("\n"));
    let help = format!(
        "{usage}\n{about}\n\n{rows}\n\n{notes}\n\nExamples:\n  {examples}",
        about = verb.description,
        examples = examples.replace('\n', "\n  "),
    );
    help.replace("{command_name}", &format!("lock-server {}", verb.name))
}

/// The arguments of a verb, each as it is typed, with its description.
pub fn rows(verb: &CommandInfoWithArgs) -> Vec<(String, &'static str)> {
    let arguments = verb.positionals.iter();
    let arguments = arguments.map(|argument| (argument.name.into(), argument.description));
    // A reader of this help knows --help.
    let is_shown = |flag: &&FlagInfo| !flag.hidden && flag.long != "--help";
    let flags = verb.flags.iter().filter(is_shown);
    let flags = flags.map(|flag| (spelled(flag), flag.description));
    arguments.chain(flags).collect()
}

/// An option as it is typed, with the name of its value.
fn spelled(flag: &FlagInfo) -> String {
    let short = flag.short.map(|short| format!("-{short}, "));
    let value = match flag.kind {
        FlagInfoKind::Switch => String::new(),
        FlagInfoKind::Option { arg_name } => format!(" {arg_name}"),
    };
    format!("{}{}{value}", short.unwrap_or_default(), flag.long)
}
