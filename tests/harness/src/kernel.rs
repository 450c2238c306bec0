//! What this kernel and this user can do.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::command::run;

/// Why network namespaces cannot be made here, if they cannot.
#[must_use]
pub fn no_namespaces() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    in_throw_away_namespace(|| Ok(())).err()
}

/// Why there are no IPIP tunnels here, if there are none: a tunnel is tried in a namespace that vanishes at once.
#[must_use]
pub fn no_ipip() -> Option<String> {
    let tried = in_throw_away_namespace(|| {
        let mut command = Command::new("ip");
        command.args("link add probe type ipip local 127.0.0.1 remote 127.0.0.2".split(' '));
        run(command)
            .map(drop)
            .map_err(|e| format!("this kernel has no ipip module ({e})"))
    });
    tried.err()
}

/// Why there is no packet filter for IPv4 here, if there is none: a table with a NAT chain is tried.
#[must_use]
pub fn no_filter() -> Option<String> {
    let tried = in_throw_away_namespace(|| {
        let mut command = Command::new("nft");
        command
            .arg("add table ip probe; add chain ip probe probe { type nat hook postrouting priority 100; }");
        run(command)
            .map(drop)
            .map_err(|e| format!("this kernel has no nf_tables for IPv4 ({e})"))
    });
    tried.err()
}

fn in_throw_away_namespace(act: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| format!("a new network namespace is refused: {e}"))?;
            act()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
