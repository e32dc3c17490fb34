//! The rules of the architecture: no import circle, only the imports that the table of the architecture page allows,
//! tiny_http in one room, sizes, and unique type names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files of `src/`, without tests, by their module's path, such as `server::http::wait`.
fn modules() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = module(path.strip_prefix(&root).expect("below it"));
                let text = fs::read_to_string(&path).expect("text");
                // Only tests follow this line.
                let code = text.split("#[cfg(test)]\nmod tests {").next();
                modules.insert(name, code.unwrap_or_default().to_string());
            }
        }
    }
    modules.retain(|name, _| !name.contains("tests"));
    modules
}

fn module(file: &Path) -> String {
    let path: PathBuf = file.with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("::")
}

/// What a file imports: the paths of its `use` lines, without the crate's name.
fn imports(module: &str, code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let statements = code.split(';').map(|statement| {
        let begin = statement.rfind("\nuse ").map(|at| at + 1);
        let begin = begin.or_else(|| statement.rfind("\npub use ").map(|at| at + 5));
        let begin = begin.or_else(|| statement.rfind("\npub(crate) use ").map(|at| at + 12));
        begin.map_or("", |at| &statement[at + 4..])
    });
    for statement in statements {
        let statement: String = statement.split_whitespace().collect();
        // Splits a list in braces into its parts, one level deep: deeper levels name no file.
        let (head, list) = statement.split_once('{').unwrap_or((&statement, ""));
        let head = resolve(module, head);
        match (head, list) {
            (Some(head), "") => paths.push(head),
            (Some(head), list) => {
                let parts = list.trim_end_matches('}').split(',');
                paths.extend(parts.map(|part| format!("{head}{part}")));
            }
            (None, _) => {}
        }
    }
    paths
}

/// The path from the crate's root. `None` for a path outside the crate.
fn resolve(module: &str, path: &str) -> Option<String> {
    if let Some(path) = path.strip_prefix("crate::") {
        return Some(path.into());
    }
    if let Some(path) = path.strip_prefix("self::") {
        return Some(format!("{module}::{path}"));
    }
    let mut above = module;
    let mut rest = path;
    while let Some(next) = rest.strip_prefix("super::") {
        above = above.rsplit_once("::").map_or("", |(above, _)| above);
        rest = next;
    }
    let is_above = rest.len() < path.len();
    is_above.then(|| {
        format!("{above}::{rest}")
            .trim_start_matches(':')
            .to_string()
    })
}

/// The file that a path leads to: the longest prefix that is a file.
fn file<'m>(modules: &'m BTreeMap<String, String>, path: &str) -> Option<&'m str> {
    let mut path = path;
    loop {
        if let Some((name, _)) = modules.get_key_value(path) {
            return Some(name);
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// For each file, the files that it imports. Imports between a file and its submodules do not count.
fn arrows(modules: &BTreeMap<String, String>) -> BTreeMap<&str, BTreeSet<&str>> {
    let is_parent = |one: &str, other: &str| other.starts_with(&format!("{one}::"));
    modules
        .iter()
        .map(|(name, code)| {
            let targets = imports(name, code);
            let targets = targets.iter().filter_map(|path| file(modules, path));
            let others = targets.filter(|target| *target != name && !is_parent(target, name));
            (name.as_str(), others.collect())
        })
        .collect()
}

/// All files that can be reached from one.
fn reached<'m>(arrows: &BTreeMap<&'m str, BTreeSet<&'m str>>, from: &'m str) -> BTreeSet<&'m str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        for &target in &arrows[file] {
            if reached.insert(target) {
                next.push(target);
            }
        }
    }
    reached
}

#[test]
fn there_are_no_import_circles() {
    let modules = modules();
    assert!(modules.len() > 50, "too few files were found");
    let arrows = arrows(&modules);
    let circular: Vec<&str> = arrows
        .keys()
        .copied()
        .filter(|file| reached(&arrows, file).contains(file))
        .collect();
    assert_eq!(circular, [""; 0], "files in circles");
}

/// A row of the architecture page's first table.
struct Room {
    /// Files by their module's path, and folders as `server::tiny::`.
    files: Vec<String>,
    may_import: Vec<String>,
}

fn rooms() -> Vec<Room> {
    let page = include_str!("../../src/guide/architecture.md");
    let table = page.split("| may import |").nth(1).expect("the table");
    let rows = table.lines().skip(2).take_while(|line| !line.is_empty());
    let in_code = |cell: &str| -> Vec<String> {
        let parts = cell.split('`').skip(1).step_by(2);
        parts.map(|part| part.replace('/', "::")).collect()
    };
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        let files = in_code(cells[1]);
        let files = files.iter().map(|file| {
            file.trim_end_matches(".rs")
                .trim_end_matches('*')
                .to_string()
        });
        Room {
            files: files.collect(),
            may_import: in_code(cells[3]),
        }
    })
    .collect()
}

/// The room of a file: the one that names it, or the innermost folder around it.
fn room_of<'r>(rooms: &'r [Room], file: &str) -> &'r Room {
    let fits = |name: &&String| **name == file || (name.ends_with("::") && file.starts_with(*name));
    let longest = |room: &&Room| {
        let fitting = room.files.iter().filter(fits);
        fitting.map(|name| name.len()).max().unwrap_or(0)
    };
    let room = rooms.iter().max_by_key(longest);
    room.filter(|room| longest(room) > 0)
        .unwrap_or_else(|| panic!("{file} has no row in the architecture page"))
}

#[test]
fn a_room_imports_only_what_its_row_of_the_architecture_page_names() {
    let (modules, rooms) = (modules(), rooms());
    assert!(rooms.len() > 15, "too few rows were read");
    let mut used = BTreeSet::new();
    for (from, targets) in arrows(&modules) {
        let room = room_of(&rooms, from);
        for to in targets {
            let other = room_of(&rooms, to);
            let allowed = room.may_import.iter().position(|name| {
                let named = room_of(&rooms, name);
                std::ptr::eq(named, other)
            });
            let is_within = std::ptr::eq(room, other);
            assert!(is_within || allowed.is_some(), "{from} imports from {to}");
            used.extend(allowed.map(|at| (&room.files[0], at)));
        }
    }
    for room in &rooms {
        for (at, name) in room.may_import.iter().enumerate() {
            let is_used = used.contains(&(&room.files[0], at));
            assert!(is_used, "{} does not import from {name}", room.files[0]);
        }
    }
}

#[test]
fn the_command_uses_only_the_public_api() {
    for (name, code) in modules() {
        let is_of_the_command = |path: &str| path == "cli" || path.starts_with("cli::");
        if is_of_the_command(&name) {
            for path in imports(&name, &code) {
                assert!(is_of_the_command(&path), "{name} imports {path}");
            }
        }
    }
}

#[test]
fn tiny_http_is_named_only_in_its_own_room() {
    for (name, code) in modules() {
        let is_named = code.contains("tiny_http::");
        assert!(!is_named || name.starts_with("server::tiny"), "{name}");
    }
}

#[test]
fn files_have_at_most_450_lines_without_tests_and_functions_at_most_60() {
    for (name, code) in modules() {
        let lines: Vec<&str> = code.lines().collect();
        assert!(lines.len() <= 450, "{name} has {} lines", lines.len());
        for (begin, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let before_name = line.split_once("fn ").map(|(before, _)| before.trim());
            let is_function = before_name.is_some_and(|before| {
                let words = [
                    "pub",
                    "pub(crate)",
                    "pub(super)",
                    "const",
                    "unsafe",
                    "extern",
                    "\"C\"",
                ];
                before
                    .split(' ')
                    .all(|word| word.is_empty() || words.contains(&word))
            });
            if is_function && !line.ends_with([';', '}']) {
                let end = format!("{}}}", &line[..indent]);
                let length = lines[begin..].iter().position(|line| *line == end);
                // A method that a trait only declares has no end, and is short.
                let length = length.map_or(0, |last| last + 1);
                assert!(length <= 60, "{name}: {length} lines: {line}");
            }
        }
    }
}

#[test]
fn no_type_name_is_defined_twice() {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for code in modules().values() {
        for line in code.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kind = words
                .iter()
                .position(|word| matches!(*word, "struct" | "enum" | "trait"));
            let is_definition = kind.is_some_and(|at| at == 0 || words[0].starts_with("pub"));
            if let Some(name) = kind
                .filter(|_| is_definition)
                .and_then(|at| words.get(at + 1))
            {
                let name = name.split(|c: char| !c.is_alphanumeric()).next();
                *count.entry(name.unwrap_or_default().into()).or_default() += 1;
            }
        }
    }
    let twice: Vec<&str> = count
        .iter()
        .filter(|(name, count)| **count > 1 && !name.is_empty())
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(twice, [""; 0]);
}
