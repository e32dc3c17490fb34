//! `store`: checks or prints the file of a store while no server uses it.

use std::path::Path;
use std::process::ExitCode;

use lock_server::StoreDump;

use crate::cli::args::{StoreArgs, StoreLook};
use crate::cli::exit::Failure;
use crate::cli::{print, printable};

/// Prints whether the file is sound, in a line; or its whole content, as JSON.
pub fn store(args: &StoreArgs) -> Result<ExitCode, Failure> {
    Ok(match args.what {
        StoreLook::Check => print(&summary(&args.path, &StoreDump::check(&args.path)?)),
        StoreLook::Dump => print(&json(&StoreDump::read(&args.path)?)),
    })
}

fn summary(path: &Path, dump: &StoreDump) -> String {
    let path = printable(&path.display().to_string());
    let holds = match dump.holds.len() {
        1 => "1 hold".into(),
        holds => format!("{holds} holds"),
    };
    let fence = match dump.greatest_fence {
        Some(fence) => format!("greatest fence {fence}"),
        None => "no fence yet".into(),
    };
    format!("{path}: {holds}, {fence}, format {}, ok", dump.format)
}

fn json(dump: &StoreDump) -> String {
    // Writing fails only for a map whose keys are not strings, and for a type whose own `Serialize` fails.
    serde_json::to_string(dump).expect("this type is written whole")
}
