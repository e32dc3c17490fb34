//! Runs each block of shell in README and the guide as a reader would, and compares its output.
//!
//! The kinds of blocks, by the word after their fence:
//!
//! - `sh` runs unchanged, and the page fails where a command fails (`bash -eu`).
//! - `console` has lines of `$ command` (`> ` continues one), each followed by its output on both streams. `...` alone
//!   in a line matches any lines, `[..]` within a line any text. A command without output has to succeed.
//! - A block below a line `<!-- not run: REASON -->` is only parsed, and is listed in [`NOT_RUN`].
//!
//! All blocks of a page run in one bash, in order, in an empty folder that is its `HOME`, in a network with only
//! loopback. A page has to end the processes that it starts.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::program::{PROGRAM, installed, unshared};
use crate::common::{bound, ms};

/// The blocks that no test can run, each with its page and its reason.
const NOT_RUN: [(&str, &str); 10] = [
    ("README.md", "it takes the sources"),
    (
        "access.md",
        "it builds the crate, and the server's name is made up",
    ),
    ("architecture.md", "these are the tests themselves"),
    ("cluster.md", "it takes etcd with TLS"),
    ("in_tests.md", "it takes a crate with tests"),
    ("operations.md", "it takes podman and the image"),
    ("operations.md", "it takes the sources"),
    ("performance.md", "it takes the sources"),
    ("safety.md", "it takes ten minutes and the sources"),
    ("safety.md", "there is no such store in the test"),
];

/// Programs that a page may need and not every machine has.
const PROGRAMS: [&str; 5] = ["curl", "etcd", "jq", "openssl", "sqlite3"];

/// How long a page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// A page and its blocks of shell.
struct Page {
    name: String,
    blocks: Vec<Block>,
}

struct Block {
    /// The line of its opening fence, counted from 1.
    line: usize,
    /// The line of its closing fence.
    end: usize,
    kind: Kind,
    /// Why it is not run. `None` if it is run.
    reason: Option<String>,
}

enum Kind {
    /// Its lines.
    Script(Vec<String>),
    Console(Vec<Typed>),
}

/// A command and its expected output.
struct Typed {
    line: usize,
    /// Its lines: more than one if it is continued.
    command: Vec<String>,
    prints: Vec<String>,
}

impl Page {
    /// Parses the blocks of a page. An error names the malformed line.
    fn parse(name: &str, text: &str) -> Result<Page, String> {
        let mut blocks = Vec::new();
        let mut before = "";
        let mut lines = text.lines().zip(1..);
        while let Some((fence, line)) = lines.next() {
            let Some(kind) = fence.trim_start().strip_prefix("```") else {
                before = fence.trim();
                continue;
            };
            let indent = fence.len() - fence.trim_start().len();
            let within = lines
                .by_ref()
                .take_while(|(text, _)| text.trim() != "```")
                .map(|(text, _)| text.get(indent..).unwrap_or_default().to_string());
            let within: Vec<String> = within.collect();
            let end = line + within.len() + 1;
            let said = before.strip_prefix("<!-- not run: ");
            let reason = said.and_then(|rest| Some(rest.strip_suffix(" -->")?.to_string()));
            before = "";
            let kind = match kind {
                "sh" => Kind::Script(within),
                "console" => Kind::Console(typed(name, line, within)?),
                "bash" | "shell" | "zsh" => {
                    return Err(format!("{name}:{line}: write sh or console, not {kind}"));
                }
                _ => continue,
            };
            blocks.push(Block {
                line,
                end,
                kind,
                reason,
            });
        }
        let name = name.into();
        Ok(Page { name, blocks })
    }

    /// Parses all pages: README and the guide.
    fn all() -> Vec<Page> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let guide = fs::read_dir(root.join("src/guide")).expect("the guide");
        let mut files: Vec<PathBuf> = guide.map(|entry| entry.expect("an entry").path()).collect();
        files.push(root.join("README.md"));
        files.sort();
        files.retain(|file| file.extension().is_some_and(|kind| kind == "md"));
        let pages = files.iter().map(|file| {
            let name = file.file_name().expect("a file").to_string_lossy();
            let text = fs::read_to_string(file).expect("text");
            Page::parse(&name, &text).unwrap_or_else(|wrong| panic!("{wrong}"))
        });
        pages.collect()
    }

    fn run_blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter(|block| block.reason.is_none())
    }

    /// The page as one script, in which each command has its line number of the page.
    fn script(&self) -> String {
        let mut lines = vec![PROLOGUE.replace('\n', " ")];
        let mut put = |line: usize, text: &str| {
            // No block begins in the first line, which is a page's heading.
            lines.resize(lines.len().max(line), String::new());
            lines[line - 1] = text.into();
        };
        for block in self.run_blocks() {
            match &block.kind {
                Kind::Script(script) => {
                    for (text, line) in script.iter().zip(block.line + 1..) {
                        put(line, text);
                    }
                }
                Kind::Console(all) => {
                    for typed in all {
                        for (text, line) in typed.command.iter().zip(typed.line..) {
                            put(line, text);
                        }
                        let begin = format!("console {}; {}", typed.line, typed.command[0]);
                        put(typed.line, &begin);
                    }
                    put(block.end, "console_end");
                }
            }
        }
        lines.push("echo >$PAGE_RECORDS/whole\n".into());
        lines.join("\n")
    }

    /// Runs the page. An error lists the failures, each with the page's name and the line.
    fn run(&self, patience: Duration) -> Result<(), String> {
        let folder = tempfile::tempdir().expect("a folder");
        let records = tempfile::tempdir().expect("a folder");
        let records = records.path();
        fs::write(records.join("script"), self.script()).expect("written");
        let Some(mut command) = namespaces() else {
            return Ok(());
        };
        let child = in_folder(&mut command, folder.path(), records)
            .spawn()
            .expect("unshare");
        let ended = ends_within(child, patience);
        let read = |name: &str| {
            let bytes = fs::read(records.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let mut failures = String::new();
        let mut fail = |line: &str, what: String| {
            let _ = writeln!(failures, "{}:{line}: {what}", self.name);
        };
        for typed in self.typed() {
            if let Err(wrong) = typed.judge(read) {
                fail(&typed.line.to_string(), wrong);
            }
        }
        let trace = read("trace");
        let last = trace
            .lines()
            .rfind(|line| line.starts_with("+ "))
            .unwrap_or_default();
        let (line, command) = last[2.min(last.len())..]
            .split_once(' ')
            .unwrap_or(("1", ""));
        let output = || {
            format!(
                "its output ends with:\n{}",
                indented(&tail(&read("output")))
            )
        };
        match read("code").trim() {
            _ if !ended => fail(
                line,
                format!("not done after {patience:?}: {command}\n{}", output()),
            ),
            "0" if records.join("whole").exists() => {}
            "0" => fail(
                line,
                format!("the page ends here, before its last block: {command}"),
            ),
            code => fail(line, format!("exit code {code:?}: {command}\n{}", output())),
        }
        for left in read("left").lines() {
            let end = self.blocks.last().map_or(1, |block| block.end);
            fail(
                &end.to_string(),
                format!("the page left a process behind: {left}"),
            );
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }

    /// The commands of the `console` blocks that run.
    fn typed(&self) -> impl Iterator<Item = &Typed> {
        self.run_blocks().flat_map(|block| match &block.kind {
            Kind::Console(all) => all.as_slice(),
            Kind::Script(_) => &[],
        })
    }

    /// The programs of [`PROGRAMS`] that the page runs.
    fn programs(&self) -> impl Iterator<Item = &'static str> {
        let script = self.script();
        PROGRAMS.into_iter().filter(move |program| {
            let is_of_a_name = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
            script
                .split(|c| !is_of_a_name(c))
                .any(|word| word == *program)
        })
    }
}

impl Block {
    /// Its commands, without their output.
    fn commands(&self) -> String {
        match &self.kind {
            Kind::Script(lines) => lines.join("\n"),
            Kind::Console(all) => all
                .iter()
                .map(|typed| typed.command.join("\n") + "\n")
                .collect(),
        }
    }
}

impl Typed {
    /// Compares the recorded output and exit code with the expected ones.
    fn judge(&self, read: impl Fn(&str) -> String) -> Result<(), String> {
        let code = read(&format!("{}.code", self.line));
        let came = read(&format!("{}.output", self.line));
        let came: Vec<&str> = came.lines().collect();
        let prints: Vec<&str> = self.prints.iter().map(String::as_str).collect();
        let command = self.command.join("\n> ");
        // A command that was not reached is no failure of its own.
        if code.is_empty() || matches_lines(&prints, &came) && (!prints.is_empty() || code == "0\n")
        {
            return Ok(());
        }
        let code = code.trim();
        let [expected, came] = [prints, came].map(|lines| indented(&lines.join("\n")));
        Err(format!(
            "$ {command}\nexpected:\n{expected}\ncame, with exit code {code}:\n{came}"
        ))
    }
}

/// Splits a `console` block into its commands.
fn typed(page: &str, fence: usize, lines: Vec<String>) -> Result<Vec<Typed>, String> {
    let mut all: Vec<Typed> = Vec::new();
    for (text, line) in lines.into_iter().zip(fence + 1..) {
        if let Some(command) = text.strip_prefix("$ ") {
            let command = vec![command.into()];
            all.push(Typed {
                line,
                command,
                prints: Vec::new(),
            });
            continue;
        }
        let Some(last) = all.last_mut() else {
            return Err(format!("{page}:{line}: no command before this: {text}"));
        };
        match text.strip_prefix("> ") {
            Some(more) if last.prints.is_empty() => last.command.push(more.into()),
            _ => last.prints.push(text),
        }
    }
    Ok(all)
}

/// Whether the output matches the expected lines.
fn matches_lines(expected: &[&str], came: &[&str]) -> bool {
    match expected {
        [] => came.is_empty(),
        ["...", rest @ ..] => (0..=came.len()).any(|skipped| matches_lines(rest, &came[skipped..])),
        [first, rest @ ..] => {
            let is_first = |line: &&str| matches_line(first, line);
            came.first().is_some_and(is_first) && matches_lines(rest, &came[1..])
        }
    }
}

fn matches_line(expected: &str, came: &str) -> bool {
    let Some((before, after)) = expected.split_once("[..]") else {
        return expected == came;
    };
    let Some(rest) = came.strip_prefix(before) else {
        return false;
    };
    let mut ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.any(|at| matches_line(after, &rest[at..]))
}

/// The first line of a page's script. After `console N` the command in line N prints to a file of its own, and may
/// fail.
const PROLOGUE: &str = r#"set -eu;
console() {
    local code=$?;
    if [ -n "${typed-}" ]; then echo $code >$PAGE_RECORDS/$typed.code; fi;
    typed=$1;
    if [ -n "$typed" ]; then set +e; exec >$PAGE_RECORDS/$typed.output 2>&1;
    else exec >>$PAGE_RECORDS/output 2>&1; set -e; fi;
};
console_end() { console ''; };
exec >>$PAGE_RECORDS/output 2>&1 9>$PAGE_RECORDS/trace;
BASH_XTRACEFD=9; PS4='+ $LINENO '; set -x;
"#;

/// Process 1 of the page, the ancestor of everything that it starts. Processes that the page's last line is ending get
/// a second for it.
const INIT: &str = r#"
ip link set lo up
bash "$PAGE_RECORDS/script"
echo $? >"$PAGE_RECORDS/code"
for try in {1..50}; do
    left=
    for process in /proc/[2-9]* /proc/1?*; do
        words=()
        mapfile -d '' -t words 2>/dev/null <"$process/cmdline"
        if [ ${#words[@]} != 0 ]; then left+="${words[*]}"$'\n'; fi
    done
    if [ -z "$left" ]; then break; fi
    sleep 0.02
done 2>/dev/null
printf %s "$left" >"$PAGE_RECORDS/left"
"#;

/// `unshare` with a network and a process namespace. `None` if this machine allows none.
fn namespaces() -> Option<Command> {
    installed("ip")?;
    let options = [
        "--map-root-user",
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
    ];
    unshared(&options)
}

/// Sets the command up to run the script of a page.
fn in_folder<'a>(command: &'a mut Command, folder: &Path, records: &Path) -> &'a mut Command {
    let programs = Path::new(PROGRAM).parent().expect("it is in a folder");
    let path = format!(
        "{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        programs.display()
    );
    let [runtime, temporary] = [".run", ".tmp"].map(|name| folder.join(name));
    for folder in [&runtime, &temporary] {
        fs::create_dir(folder).expect("a folder");
    }
    command
        .args(["bash", "-c", INIT])
        .current_dir(folder)
        .env_clear()
        .env("PATH", path)
        .env("HOME", folder)
        .env("XDG_RUNTIME_DIR", runtime)
        .env("XDG_STATE_HOME", folder.join(".state"))
        .env("TMPDIR", temporary)
        .env("LC_ALL", "C.UTF-8")
        .env("PAGE_RECORDS", records)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
}

/// Waits for the end of a process, and kills it after `patience`. Returns whether it ended by itself.
fn ends_within(mut child: Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if child.try_wait().expect("a child").is_some() {
            return true;
        }
        thread::sleep(ms(10));
    }
    // This also ends process 1 of the page, and with it all others.
    child.kill().expect("a child");
    child.wait().expect("a child");
    false
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}\n"))
        .collect::<String>()
        .trim_end()
        .into()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[test]
fn each_block_of_shell_on_a_page_does_what_the_page_says() {
    let pages = Page::all();
    let failures: Vec<String> = thread::scope(|scope| {
        let run = |page: &Page| match page.programs().all(|program| installed(program).is_some()) {
            true => page.run(bound(PAGE_TIMEOUT)),
            false => Ok(()),
        };
        let running = pages
            .iter()
            .filter(|page| page.run_blocks().next().is_some());
        let running: Vec<_> = running.map(|page| scope.spawn(move || run(page))).collect();
        let ended = running
            .into_iter()
            .map(|page| page.join().expect("no panic"));
        ended.filter_map(Result::err).collect()
    });
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn only_the_listed_blocks_are_not_run_and_all_blocks_parse() {
    let mut found = Vec::new();
    let pages = Page::all();
    for page in &pages {
        for block in &page.blocks {
            let Some(reason) = &block.reason else {
                continue;
            };
            found.push((page.name.as_str(), reason.as_str()));
            let mut bash = Command::new("bash");
            let parsed = bash
                .args(["-n", "-c", &block.commands()])
                .output()
                .expect("bash");
            let said = String::from_utf8_lossy(&parsed.stderr);
            assert!(
                parsed.status.success(),
                "{}:{}: {said}",
                page.name,
                block.line
            );
        }
    }
    found.sort();
    assert_eq!(found, NOT_RUN);
}

/// Runs a page with this text.
fn run(text: &str, patience: Duration) -> Result<(), String> {
    Page::parse("page.md", text)?.run(patience)
}

/// Runs a page with this text, and checks that the error has all of these words.
#[track_caller]
fn fails(text: &str, words: &[&str]) {
    let failure = run(text, bound(PAGE_TIMEOUT)).expect_err("it fails");
    for word in words {
        assert!(failure.contains(word), "no {word:?} in {failure}");
    }
}

#[test]
fn a_page_is_one_shell_in_a_folder_and_a_network_of_its_own() {
    if namespaces().is_none() {
        return;
    }
    let page = "\
# Title

```sh
[ \"$(ls)\" = '' ]
lock-server start --lock-timeout 60 >/dev/null
for key in a b; do
    lock-server lock $key >/dev/null
done
NAME=CLIENT_B
```

- In a list:

  ```console
  $ lock-server status | sed 's/process [0-9]*/process N/'
  running, process N, on 127.0.0.1:8004
  $ curl -s http://127.0.0.1:8004/CHECK/a
  1
  $ lock-server lock --try --name $NAME b; echo $?
  lock-server: b is held by [..] for [..] s more[..]
  0
  1
  $ seq 1 100
  1
  ...
  99
  100
  $ cat <<END
  > one
  > END
  one
  $ true
  ```

<!-- not run: it needs another machine -->
```sh
false
```

```text
neither is this
```

```sh
lock-server stop >/dev/null
```
";
    run(page, bound(PAGE_TIMEOUT)).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn the_error_of_a_wrong_page_has_its_line_command_and_output() {
    if namespaces().is_none() {
        return;
    }
    fails(
        "# Title\n\n```sh\ntrue\nls nothing-here\n```\n",
        &[
            "page.md:5: exit code \"2\": ls nothing-here",
            "cannot access 'nothing-here'",
        ],
    );
    fails(
        "# Title\n\n```console\n$ echo one\none\n$ echo three\ntwo\n$ false\n$ echo four\n```\n",
        &[
            "page.md:6: $ echo three\nexpected:\n    two\ncame, with exit code 0:\n    three\n",
            "page.md:8: $ false\n",
            "page.md:9: $ echo four\n",
        ],
    );
    fails(
        "# Title\n\n```sh\nexit 0\n```\n\n```sh\nfalse\n```\n",
        &["page.md:4: the page ends here, before its last block: exit 0"],
    );
    fails(
        "# Title\n\n```sh\nlock-server start\nsleep 1000 &\n```\n",
        &[
            "page.md:6: the page left a process behind: ",
            "lock-server start",
            "sleep 1000",
        ],
    );
    let endless = "# Title\n\n```sh\ntrue\nsleep 1000\n```\n";
    let failure = run(endless, Duration::from_secs(1)).expect_err("it fails");
    assert!(
        failure.starts_with("page.md:5: not done after 1s: sleep 1000"),
        "{failure}"
    );
}

#[test]
fn the_error_of_a_malformed_block_has_its_line() {
    for (page, expected) in [
        (
            "# Title\n\n```bash\ntrue\n```\n",
            "page.md:3: write sh or console, not bash",
        ),
        (
            "# Title\n\n```console\none\n```\n",
            "page.md:4: no command before this: one",
        ),
    ] {
        let wrong = Page::parse("page.md", page).err();
        assert_eq!(wrong.as_deref(), Some(expected));
    }
}

#[test]
fn dots_match_any_lines_and_dots_in_brackets_any_text() {
    for (expected, came, is_same) in [
        ("", "", true),
        ("a", "", false),
        ("a", "a\nb", false),
        ("...", "", true),
        ("...\nb\n...", "a\nb\nb\nc", true),
        ("...\nb", "a\nb\nc", false),
        ("a [..] c", "a b c", true),
        ("a [..] c[..]", "a  c", true),
        ("a [..] c", "a b c d", false),
        ("[..]b[..]d", "abbcd", true),
        (".", "a", false),
    ] {
        let [expected_lines, lines] = [expected, came].map(|text| text.lines().collect::<Vec<_>>());
        assert_eq!(
            matches_lines(&expected_lines, &lines),
            is_same,
            "{expected} {came}"
        );
    }
}
