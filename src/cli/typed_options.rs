//! The options of a server as they were typed. Its pid file has them, so that a restart can keep them.

use std::env;
use std::fmt::Display;
use std::path::{self, Path};

use argh::FlagInfoKind;

use crate::cli::args::{self, Command, ServerArgs, Subcommand};
use crate::cli::exit::Failure;

/// What a restart learns from the old server itself: these options may be typed as 0.
const OF_ITS_PLACE: [&str; 3] = ["--port", "--classic-port", "--pid-file"];

/// Options with their values. A switch has no value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypedOptions(Vec<(String, Option<String>)>);

impl TypedOptions {
    /// The options of a verb that serves, from the words after the verb.
    pub fn of(words: &[String]) -> Self {
        let mut options = Vec::new();
        let mut words = words.iter().cloned();
        while let Some(option) = words.next() {
            if option == "--" {
                continue;
            }
            let value = value_of(&option).and_then(|_| words.next());
            options.push((option, value));
        }
        TypedOptions(options)
    }

    /// The words that [`of`](Self::of) reads.
    pub fn words(&self) -> Vec<String> {
        let words = self.0.iter();
        let words = words.flat_map(|(option, value)| [Some(option), value.as_ref()]);
        words.flatten().cloned().collect()
    }

    /// The same options for a process in another directory: their paths start in the current one.
    pub fn absolute(self) -> Result<Self, Failure> {
        if self.clone().in_directory(Path::new("/")).as_ref() == Some(&self) {
            return Ok(self);
        }
        let here = env::current_dir();
        let here = here.map_err(|error| Failure::system("no current directory", error))?;
        self.in_directory(&here)
            .ok_or_else(|| Failure::usage(format!("{here:?} is no text; give absolute paths")))
    }

    /// The same options, with paths that start in this directory. `None` if a path is no text then.
    pub fn in_directory(mut self, directory: &Path) -> Option<Self> {
        for (option, value) in &mut self.0 {
            let Some(value) = value else { continue };
            let (kind, path) = match value_of(option) {
                Some("FILE" | "PATH") => ("", value.as_str()),
                Some("STORE") if value.starts_with("file:") => value.split_at("file:".len()),
                _ => continue,
            };
            if path.is_empty() {
                continue;
            }
            // It fails for an empty path alone.
            let path = path::absolute(directory.join(path)).ok()?;
            *value = format!("{kind}{}", path.to_str()?);
        }
        Some(self)
    }

    /// Those options of an old server that a restart with these options keeps: all that are not typed anew. A new store
    /// replaces all options of the old one.
    pub fn kept_of(&self, old: &Self) -> Self {
        let has = |option: &str| self.0.iter().any(|(typed, _)| typed == option);
        let is_of_store = |option: &str| option.starts_with("--store") || option == "--advertise";
        let is_kept = |option: &str| {
            let is_replaced = has(option) || has("--store") && is_of_store(option);
            !is_replaced && !OF_ITS_PLACE.contains(&option)
        };
        let kept = old.0.iter().filter(|(option, _)| is_kept(option));
        TypedOptions(kept.cloned().collect())
    }

    /// These options and further ones.
    pub fn with(mut self, further: Self) -> Self {
        self.0.extend(further.0);
        self
    }

    /// Sets the only value of an option.
    pub fn set(&mut self, option: &str, value: impl Display) {
        self.0.retain(|(typed, _)| typed != option);
        self.0.push((option.into(), Some(value.to_string())));
    }

    /// The value of the option, if it was typed.
    pub fn value(&self, option: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(typed, _)| typed == option)?;
        value.as_deref()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The options as the parser reads them.
    pub fn parse(&self) -> Result<ServerArgs, Failure> {
        let words = [vec!["restart".into()], self.words()].concat();
        if let Command::Verb(verb) = args::parse(&words)?
            && let Subcommand::Restart(args) = *verb
        {
            return Ok(args.into());
        }
        Err(Failure::usage("these are no options of a server"))
    }
}

/// What the help calls the value of an option. `None` for a switch.
fn value_of(option: &str) -> Option<&'static str> {
    let flags = args::verbs()
        .into_iter()
        .find(|verb| verb.name == "start")?
        .flags;
    let flag = flags.iter().find(|flag| flag.long == option)?;
    match flag.kind {
        FlagInfoKind::Option { arg_name } => Some(arg_name),
        FlagInfoKind::Switch => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> TypedOptions {
        let words: Vec<String> = line.split_ascii_whitespace().map(String::from).collect();
        let typed = TypedOptions::of(&words);
        assert_eq!(typed.words(), words);
        typed
    }

    #[test]
    fn a_restart_keeps_what_is_not_typed_anew() {
        let old = typed(
            "--host ::1 --port 0 --allow-break --store etcd:http://a:1 --store-ttl 9 --advertise b:1 --allow-host c",
        );
        for (anew, kept) in [
            (
                "",
                "--host ::1 --allow-break --store etcd:http://a:1 --store-ttl 9 --advertise b:1 --allow-host c",
            ),
            (
                "--store-ttl 8 --host ::",
                "--allow-break --store etcd:http://a:1 --advertise b:1 --allow-host c",
            ),
            ("--store file:d --allow-break", "--host ::1 --allow-host c"),
        ] {
            let anew = typed(anew);
            assert_eq!(anew.kept_of(&old), typed(kept));
            assert!(anew.clone().with(anew.kept_of(&old)).parse().is_ok());
        }
    }

    #[test]
    fn paths_become_absolute_and_other_values_stay() {
        let relative =
            typed("--log-file a --store file:b/c --token-file /d --allow-break --host e");
        let absolute =
            typed("--log-file /x/a --store file:/x/b/c --token-file /d --allow-break --host e");
        assert_eq!(relative.in_directory(Path::new("/x")), Some(absolute));
        let etcd = typed("--store etcd:http://a:1");
        assert_eq!(etcd.clone().in_directory(Path::new("/x")), Some(etcd));
    }
}
