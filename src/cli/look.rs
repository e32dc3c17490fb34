//! The verbs that look at locks: for people on a terminal, for programs, and as JSON.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::process::ExitCode;

use lock_server::{HeldKey, KeyDetail, ListOptions};

use crate::cli::args::{List, Show};
use crate::cli::columns::{Column, length};
use crate::cli::exit::{Failure, NO};
use crate::cli::grid::{Fit, Grid};
use crate::cli::{print, print_and, print_part, say};

/// How many keys to ask for at once: the most that a server sends.
const KEYS_PER_PAGE: u32 = 1000;

/// Prints the keys that are held.
pub fn list(args: &List) -> Result<ExitCode, Failure> {
    let client = args.target().client()?;
    let options = ListOptions {
        prefix: args.prefix.clone().unwrap_or_default(),
        holder: args.holder.clone(),
        limit: Some(KEYS_PER_PAGE),
        ..ListOptions::default()
    };
    let mut pages = client.list_pages(options);
    // A key that moved in the order while the pages were read may be on two of them.
    let mut seen = HashSet::new();
    let mut is_new = |held: &HeldKey| seen.insert(held.key.clone());
    if args.json {
        let mut all = pages.next().expect("the first page, or an error")?;
        all.locks.retain(&mut is_new);
        for page in pages {
            all.locks
                .extend(page?.locks.into_iter().filter(&mut is_new));
        }
        all.next = None;
        return Ok(print(&json(&all)));
    }
    let columns = args.columns.clone().unwrap_or_default().0;
    let mut grid = Grid::new(columns.iter().map(|column| column.fit()));
    let headings = columns.iter().map(|column| column.heading()).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    if !args.no_headings {
        rows.push(headings);
    }
    for page in pages {
        for held in page?.locks.iter().filter(|held| is_new(held)) {
            rows.extend(lines(held, &columns, grid.is_for_people()));
        }
        if let ControlFlow::Break(code) = print_part(&grid.lines(&rows)) {
            return Ok(code);
        }
        rows.clear();
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(
    held: &HeldKey,
    columns: &[Column],
    is_for_people: bool,
) -> impl Iterator<Item = Vec<String>> {
    let HeldKey { key, holders, .. } = held;
    let listed = held.held_by.len();
    if listed < *holders {
        say(&format!(
            "{listed} of {holders} holders of {key} are listed; lock-server show has up to 10,000"
        ));
    }
    held.held_by.iter().map(move |hold| {
        let cells = columns.iter();
        cells
            .map(|column| column.cell(held, hold, is_for_people))
            .collect()
    })
}

/// The columns of `show`.
const SHOWN: [(&str, Fit); 7] = [
    ("STATE", Fit::Whole),
    ("NAME", Fit::Middle),
    ("FOR", Fit::Number),
    ("LEFT", Fit::Number),
    ("SLOTS", Fit::Number),
    ("FENCE", Fit::Number),
    ("NOTE", Fit::End),
];

/// Prints who holds a key, and who waits for it.
pub fn show(args: &Show) -> Result<ExitCode, Failure> {
    let detail = args.target().client()?.show(&args.key)?;
    let code = if detail.holders > 0 { 0 } else { NO };
    if args.json {
        return Ok(print_and(&json(&detail), code.into()));
    }
    if detail.holders == 0 {
        say(&format!("nobody has locked {}", args.key));
    }
    let mut grid = Grid::new(SHOWN.map(|(_, fit)| fit));
    let mut rows = vec![SHOWN.map(|(heading, _)| heading.to_string()).to_vec()];
    rows.extend(queue(&detail, grid.is_for_people()));
    Ok(match print_part(&grid.lines(&rows)) {
        ControlFlow::Break(failed) if failed != ExitCode::SUCCESS => failed,
        _ => code.into(),
    })
}

/// The holders of the key, and then the waiters, as cells.
fn queue(detail: &KeyDetail, is_for_people: bool) -> impl Iterator<Item = Vec<String>> {
    let note = |note: &Option<String>| note.clone().unwrap_or_default();
    let holders = detail.held_by.iter().map(move |hold| {
        let [held, left] = [hold.held, hold.left].map(|time| length(time, is_for_people));
        let (slots, fence) = (hold.slots.to_string(), hold.fence.to_string());
        vec![
            "held".into(),
            hold.name.clone(),
            held,
            left,
            slots,
            fence,
            note(&hold.note),
        ]
    });
    let waiters = detail.queue.iter().map(move |waiter| {
        let times = [waiter.waiting, waiter.left].map(|time| length(time, is_for_people));
        let ([waiting, left], slots) = (times, waiter.slots.to_string());
        let no_fence = String::new();
        vec![
            "waits".into(),
            waiter.name.clone(),
            waiting,
            left,
            slots,
            no_fence,
            note(&waiter.note),
        ]
    });
    holders.chain(waiters)
}

fn json(shown: &impl serde::Serialize) -> String {
    // Writing fails only for a map whose keys are not strings, and for a type whose own `Serialize` fails.
    serde_json::to_string(shown).expect("these types are written whole")
}
