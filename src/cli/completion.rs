//! The completion scripts for shells, generated from the verbs and options that the parser knows.

use std::fmt::Write;

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind};

use crate::cli::args::{Arguments, EXEC, HELP, Shell};
use crate::cli::pages::topic_names;

/// Options of which at most one may be given.
const ONE_OF: [&[&str]; 4] = [
    &["--shared", "--exclusive", "--slots"],
    &["--nonblock", "--wait"],
    &["--try", "--lock-attempt-timeout"],
    &["--quiet", "--verbose"],
];

/// The description of `help`.
const HELP_ABOUT: &str = "show a page of the guide, or what a command does";

/// The script for a shell to source.
pub fn script(shell: Shell) -> String {
    let verbs: Vec<CompletedVerb> = Arguments::get_args_info()
        .commands
        .iter()
        .map(|verb| CompletedVerb::of(&verb.command))
        .collect();
    match shell {
        Shell::Bash => bash(&verbs),
        Shell::Zsh => zsh(&verbs),
        Shell::Fish => fish(&verbs),
    }
}

struct CompletedVerb {
    name: String,
    about: String,
    options: Vec<CompletedOption>,
}

struct CompletedOption {
    /// The long spelling, with its dashes.
    long: String,
    short: Option<char>,
    about: String,
    value: TakenValue,
}

#[derive(PartialEq)]
enum TakenValue {
    Nothing,
    Text,
    File,
}

impl CompletedVerb {
    fn of(verb: &CommandInfoWithArgs) -> Self {
        let options = verb.flags.iter().filter(|flag| !flag.hidden);
        CompletedVerb {
            name: verb.name.into(),
            about: verb.description.into(),
            options: options.map(CompletedOption::of).collect(),
        }
    }

    /// All spellings of an option and of those that exclude it.
    fn excluded_by(&self, option: &CompletedOption) -> Vec<String> {
        let exclude_each_other = |a: &str, b: &str| {
            ONE_OF
                .iter()
                .any(|set| set.contains(&a) && set.contains(&b))
        };
        self.spelled(|other| {
            other.long == option.long || exclude_each_other(&other.long, &option.long)
        })
    }

    /// All spellings of the options for which `is_meant` is true.
    fn spelled(&self, is_meant: impl Fn(&CompletedOption) -> bool) -> Vec<String> {
        let options = self.options.iter().filter(|option| is_meant(option));
        options
            .flat_map(|option| {
                let short = option.short.map(|short| format!("-{short}"));
                short.into_iter().chain([option.long.clone()])
            })
            .collect()
    }
}

impl CompletedOption {
    fn of(flag: &FlagInfo) -> Self {
        // The first clause; the rest is for --help.
        let about = flag.description.split(';').next().unwrap_or_default();
        CompletedOption {
            long: flag.long.into(),
            short: flag.short,
            about: about.split_whitespace().collect::<Vec<_>>().join(" "),
            value: match flag.kind {
                FlagInfoKind::Switch => TakenValue::Nothing,
                FlagInfoKind::Option { .. } if flag.long.ends_with("-file") => TakenValue::File,
                FlagInfoKind::Option { .. } => TakenValue::Text,
            },
        }
    }
}

/// The names of all verbs.
fn names(verbs: &[CompletedVerb]) -> String {
    let names: Vec<&str> = verbs.iter().map(|verb| verb.name.as_str()).collect();
    names.join(" ")
}

fn bash(verbs: &[CompletedVerb]) -> String {
    let (names, mut values, mut options) = (names(verbs), String::new(), String::new());
    let topics = topic_names().join(" ");
    for verb in verbs {
        let name = &verb.name;
        for (value, reply) in [
            (TakenValue::File, "_lock_server_files \"$cur\"; return"),
            (TakenValue::Text, "return"),
        ] {
            let taking = verb.spelled(|option| option.value == value);
            let patterns: Vec<String> =
                taking.iter().map(|long| format!("{name}:{long}")).collect();
            if !patterns.is_empty() {
                // Writing to a string does not fail.
                let _ = writeln!(values, "        {}) {reply} ;;", patterns.join("|"));
            }
        }
        let all = verb.spelled(|_| true).join(" ");
        let _ = writeln!(options, "        {name}) words=\"{all}\" ;;");
    }
    format!(
        r#"# source <(lock-server completion bash)
_lock_server_files() {{
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
}}

_lock_server() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} verb=${{COMP_WORDS[1]}}
    local words="" i; COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "{names} {HELP} --help --version" -- "$cur")
        return
    fi
    for ((i = 2; i < COMP_CWORD; i++)); do
        [[ ${{COMP_WORDS[i]}} == -- ]] || continue
        # Behind it stands a key, or the command of exec.
        [[ $verb == {EXEC} ]] || return
        if ((COMP_CWORD == i + 1)); then
            mapfile -t COMPREPLY < <(compgen -c -- "$cur")
        else
            _lock_server_files "$cur"
        fi
        return
    done
    case $verb:$prev in
        completion:completion) words="bash zsh fish" ;;
        store:store) words="check dump" ;;
        {HELP}:{HELP}) words="{topics} {names}" ;;
        store:check|store:dump) _lock_server_files "$cur"; return ;;
{values}    esac
    case $verb in
        completion|store|{HELP}) ;;
{options}    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}}

complete -F _lock_server lock-server"#
    )
}

fn zsh(verbs: &[CompletedVerb]) -> String {
    let (mut described, mut cases) = (String::new(), String::new());
    for verb in verbs {
        let CompletedVerb {
            name,
            about,
            options,
        } = verb;
        let _ = writeln!(described, "        '{name}:{}'", zsh_quoted(about));
        let _ = writeln!(cases, "        {name}) _arguments -S \\");
        for option in options {
            let argument = zsh_argument(option, &verb.excluded_by(option));
            let _ = writeln!(cases, "            {argument} \\");
        }
        let rest = match name.as_str() {
            "completion" => "'1:shell:(bash zsh fish)'",
            "store" => "'1:what:(check dump)' '2:file:_files'",
            _ => "'1:key: '",
        };
        let _ = writeln!(cases, "            {rest} ;;");
    }
    let _ = writeln!(described, "        '{HELP}:{HELP_ABOUT}'");
    let _ = writeln!(
        cases,
        "        {HELP}) _arguments '1:topic:({} {})' ;;",
        topic_names().join(" "),
        names(verbs),
    );
    format!(
        r#"#compdef lock-server
_lock_server() {{
    local -a verbs=(
{described}    )
    if ((CURRENT == 2)); then
        _describe -t commands command verbs
        return
    fi
    local verb=$words[2] dashes=${{words[(i)--]}}
    if [[ $verb == {EXEC} ]] && ((dashes < CURRENT)); then
        shift $dashes words
        ((CURRENT -= dashes))
        _normal
        return
    fi
    shift words
    ((CURRENT--))
    case $verb in
{cases}    esac
}}

if [[ $funcstack[1] == _lock_server ]]; then
    _lock_server "$@"
else
    compdef _lock_server lock-server
fi"#
    )
}

/// An option in the form of `_arguments`, with the spellings that are not offered after it.
fn zsh_argument(option: &CompletedOption, excluded: &[String]) -> String {
    let (long, about) = (&option.long, zsh_quoted(&option.about));
    let value = match option.value {
        TakenValue::Nothing => "",
        TakenValue::Text => ":value: ",
        TakenValue::File => ":file:_files",
    };
    let excluded = excluded.join(" ");
    let spelled = match option.short {
        Some(short) => format!("'({excluded})'{{-{short},{long}}}'"),
        None => format!("'({excluded}){long}"),
    };
    format!("{spelled}[{about}]{value}'")
}

/// Escapes text for single quotes, and for the description of an option: a bracket would end it, a colon would begin
/// the value.
fn zsh_quoted(text: &str) -> String {
    let text = text.replace('\'', r"'\''").replace(':', r"\:");
    text.replace('[', r"\[").replace(']', r"\]")
}

/// The words after a verb.
const FISH_WORDS: &str = "\
complete -c lock-server -n '__lock_server_verb completion' -a 'bash zsh fish'
complete -c lock-server -n '__lock_server_verb store' -a 'check dump'
complete -c lock-server -n '__lock_server_verb store; and test (count (commandline -opc)) -gt 2' -F
";

fn fish_quoted(text: &str) -> String {
    text.replace('\\', r"\\").replace('\'', r"\'")
}

/// The line for an option of a verb.
fn fish_option(verb: &str, option: &CompletedOption) -> String {
    let about = fish_quoted(&option.about);
    let long = option.long.trim_start_matches('-');
    let short = option.short.map(|short| format!(" -s {short}"));
    let short = short.unwrap_or_default();
    let value = match option.value {
        TakenValue::Nothing => "",
        TakenValue::Text => " -x",
        TakenValue::File => " -r -F",
    };
    format!(
        "complete -c lock-server -n '__lock_server_verb {verb}' -l {long}{short}{value} -d '{about}'\n"
    )
}

fn fish(verbs: &[CompletedVerb]) -> String {
    let mut lines = String::from(FISH_WORDS);
    let _ = writeln!(
        lines,
        "complete -c lock-server -n __lock_server_no_verb -a {HELP} -d '{HELP_ABOUT}'\n\
         complete -c lock-server -n '__lock_server_verb {HELP}' -a '{} {}'",
        topic_names().join(" "),
        names(verbs),
    );
    for verb in verbs {
        let name = &verb.name;
        let about = fish_quoted(&verb.about);
        let _ = writeln!(
            lines,
            "complete -c lock-server -n __lock_server_no_verb -a {name} -d '{about}'"
        );
        let options = verb.options.iter();
        lines.extend(options.map(|option| fish_option(name, option)));
    }
    format!(
        r#"# lock-server completion fish | source
function __lock_server_no_verb
    test (count (commandline -opc)) -eq 1
end

function __lock_server_verb
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test "$words[2]" = "$argv[1]"
end

function __lock_server_command
    set -l words (commandline -opc)
    __lock_server_verb {EXEC}; and contains -- -- $words
end

function __lock_server_complete_command
    set -l words (commandline -opc)
    set -l at (contains -i -- -- $words)
    set -l command (commandline -ct)
    if test $at -lt (count $words)
        set command (string escape -- $words[(math $at + 1)..-1]) $command
    end
    complete -C (string join ' ' -- $command)
end

complete -c lock-server -f
complete -c lock-server -n __lock_server_command -a '(__lock_server_complete_command)'
{lines}"#
    )
    .trim_end()
    .into()
}
