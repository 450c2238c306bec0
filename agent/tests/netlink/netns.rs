//! A network namespace per test, and the words to talk about it.

use std::future::Future;
use std::io::Write;
use std::net::IpAddr;
use std::process::Command;

use culvert_agent::dataplane::{Dataplane, Netlink};
use culvert_agent::fib::{
    Link, MAIN_TABLE, NextHop, Route, RouteKey, RouteKind, SCOPE_LINK, SCOPE_UNIVERSE, Snapshot,
};
use culvert_agent::reconcile::Ours;
use nix::sched::{CloneFlags, unshare};

/// Our protocol number in these tests.
pub(crate) const OURS: Ours = Ours { protocol: 86 };

/// Says that a test could not run, past the capture of output.
pub(crate) fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

/// Runs `test` on a thread in a new network namespace, with a runtime that stays on that thread.
pub(crate) fn in_namespace<F, T>(test: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()>,
{
    let name = std::thread::current().name().unwrap_or("netns").to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        if let Err(why) = unshare(CloneFlags::CLONE_NEWNET) {
            return skipped(&format!(
                "no network namespace may be made here ({why}); run as root"
            ));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        ip("link set lo up");
        runtime.block_on(test());
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of this thread and gives what it prints; it must succeed.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("iproute2 is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A veth pair, up, with `172.18.0.1/24` on the end `u0`.
pub(crate) fn underlay() {
    ip("link add name u0 type veth peer name u1");
    ip("addr add 172.18.0.1/24 dev u0");
    ip("link set u0 up");
    ip("link set u1 up");
}

pub(crate) async fn link(netlink: &Netlink, name: &str) -> Link {
    let snapshot = netlink.dump().await.unwrap();
    snapshot
        .links
        .into_iter()
        .find(|link| link.name == name)
        .unwrap_or_else(|| panic!("no link {name}"))
}

pub(crate) fn key(prefix: &str) -> RouteKey {
    RouteKey {
        table: MAIN_TABLE,
        prefix: prefix.parse().unwrap(),
        metric: 0,
    }
}

pub(crate) fn hop(gateway: &str, link: u32) -> NextHop {
    NextHop {
        gateway: Some(gateway.parse::<IpAddr>().unwrap()),
        link,
        onlink: false,
        weight: 1,
    }
}

/// A unicast route of ours.
pub(crate) fn unicast(prefix: &str, next_hops: Vec<NextHop>) -> Route {
    let scope = if next_hops.iter().any(|hop| hop.gateway.is_some()) {
        SCOPE_UNIVERSE
    } else {
        SCOPE_LINK
    };
    Route {
        key: key(prefix),
        kind: RouteKind::Unicast,
        next_hops,
        source: None,
        protocol: OURS.protocol,
        scope,
        mtu: None,
    }
}

/// A route of ours through a gateway that no address of the link covers.
pub(crate) fn onlink(prefix: &str, gateway: &str, link: u32) -> Route {
    unicast(
        prefix,
        vec![NextHop {
            onlink: true,
            ..hop(gateway, link)
        }],
    )
}

/// The routes of a snapshot that carry our protocol number.
pub(crate) fn of_ours(snapshot: &Snapshot) -> Vec<Route> {
    let mut routes: Vec<Route> = snapshot
        .routes
        .iter()
        .filter(|route| route.protocol == OURS.protocol)
        .cloned()
        .collect();
    routes.sort();
    routes
}
