//! Where little of a system is there, as in a folder that was made a root. What a container has to have is on the operations
//! page.

use std::process::Command;

use lock_server::Server;

use crate::common::options;
use crate::common::program::{Outcome, PROGRAM, unshared};

/// A shell that hides a folder of the system, and then goes on. `None` where that is not allowed.
fn without(folder: &str, then: &str) -> Option<Command> {
    let mut unshare = unshared(&["-rm"])?;
    let script = format!("mount -t tmpfs none {folder} && exec timeout 20 {then}");
    unshare.args(["sh", "-c", &script]);
    Some(unshare)
}

/// It served, and never noticed that a client which waited had gone.
#[test]
fn without_proc_no_server_starts_and_it_says_why() {
    let Some(mut server) = without("/proc", &format!("{PROGRAM} run --port 0")) else {
        return;
    };
    let outcome = Outcome::of(&mut server);
    outcome.expect(1, "");
    outcome.expect_stderr(&["/proc is not there", "which clients have gone"]);
}

/// The error named /proc/self/exe, which was there.
#[test]
fn without_dev_null_no_server_starts_in_a_process_of_its_own_and_the_error_names_it() {
    let this = std::env::current_exe().expect("Linux tells it");
    let name = "container::program_that_starts_a_server";
    let program = format!("{} --ignored --nocapture --exact {name}", this.display());
    let Some(mut program) = without("/dev", &program) else {
        return;
    };
    let outcome = Outcome::of(&mut program);
    let said = "cannot open /dev/null\n";
    assert!(outcome.stdout.contains(said), "{outcome:?}");
}

#[test]
#[ignore = "it is run by another test"]
fn program_that_starts_a_server() {
    let error = Server::new(options()).start().expect_err("no /dev/null");
    println!("{error}");
}
