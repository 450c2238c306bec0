//! Whether encapsulated packets really leave with the advertised address: the kernel is asked, not the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::desired::{PIN_PRIORITY, Settings};
use crate::fib::{Change, MAIN_TABLE, RouteKey};
use crate::reconcile::Actual;
use crate::status::SourceMismatch;

/// How often the kernel is asked when nothing has happened.
const INTERVAL: Duration = Duration::from_secs(30);

/// How soon it is asked after something has: a burst of events is one question.
const SETTLE: Duration = Duration::from_millis(100);

/// What the kernel answered last.
#[derive(Debug, Default)]
pub(super) struct SourceCheck {
    /// The nodes to ask about.
    peers: BTreeSet<Ipv4Addr>,
    /// The source of packets to each of them. One without a way is not here.
    found: BTreeMap<Ipv4Addr, Ipv4Addr>,
    mismatches: BTreeMap<Ipv4Addr, SourceMismatch>,
    /// Why the kernel could not be asked.
    refused: Option<String>,
    /// When it is asked next.
    due: Option<Instant>,
}

impl SourceCheck {
    /// When the kernel is to be asked.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Something happened that may have changed the answers.
    pub(super) fn ask_soon(&mut self) {
        if !self.peers.is_empty() {
            let soon = Instant::now() + SETTLE;
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
    }

    /// These are the nodes to ask about, from now on.
    pub(super) fn ask_about(&mut self, peers: &BTreeSet<Ipv4Addr>) {
        if self.peers == *peers {
            return;
        }
        self.peers.clone_from(peers);
        self.found.retain(|peer, _| peers.contains(peer));
        self.mismatches.retain(|peer, _| peers.contains(peer));
        self.due = None;
        self.ask_soon();
    }

    /// Asks by `ask`, and says what is new.
    pub(super) fn ask(
        &mut self,
        settings: &Settings,
        actual: &Actual,
        ask: impl FnOnce(BTreeSet<Ipv4Addr>) -> io::Result<BTreeMap<Ipv4Addr, Ipv4Addr>>,
    ) {
        self.due = (!self.peers.is_empty()).then(|| Instant::now() + INTERVAL);
        match ask(self.peers.clone()) {
            Ok(found) => {
                self.refused = None;
                self.found = found;
            }
            Err(error) => {
                let refused = format!(
                    "the source of tunnelled packets cannot be checked: {error}; give the agent CAP_NET_RAW"
                );
                if self.refused.as_ref() != Some(&refused) {
                    warn!(%error, "the source of tunnelled packets cannot be checked; give the agent CAP_NET_RAW");
                }
                self.refused = Some(refused);
                self.found.clear();
            }
        }
        let mismatches = mismatches(settings, actual, &self.found);
        for (peer, new) in &mismatches {
            if self.mismatches.get(peer) != Some(new) {
                error!(%peer, source = %new.source, advertised = %settings.address, problem = new.problem, "wrong source");
            }
        }
        for peer in self
            .mismatches
            .keys()
            .filter(|peer| !mismatches.contains_key(peer))
        {
            if self.found.contains_key(peer) {
                info!(%peer, source = %settings.address, "tunnelled packets leave with the advertised address again");
            }
        }
        self.mismatches = mismatches;
    }

    /// The source of tunnelled packets to `peer`, as the kernel answered last.
    pub(super) fn source_to(&self, peer: IpAddr) -> Option<IpAddr> {
        let IpAddr::V4(peer) = peer else { return None };
        self.found.get(&peer).map(|source| IpAddr::V4(*source))
    }

    /// The nodes to which packets would leave with another source, by address.
    pub(super) fn mismatches(&self) -> Vec<SourceMismatch> {
        self.mismatches.values().cloned().collect()
    }

    /// Why the kernel could not be asked, if so.
    pub(super) fn refused(&self) -> Option<&String> {
        self.refused.as_ref()
    }
}

/// The answers that are wrong, each with what to do about it.
fn mismatches(
    settings: &Settings,
    actual: &Actual,
    found: &BTreeMap<Ipv4Addr, Ipv4Addr>,
) -> BTreeMap<Ipv4Addr, SourceMismatch> {
    let advertised = settings.address;
    let wrong = found.iter().filter(|(_, source)| **source != advertised);
    wrong
        .map(|(peer, source)| {
            let link = actual.link_with_address(IpAddr::V4(*source));
            let link = link.map_or("no link", |(link, _)| &link.name);
            let problem = format!(
                "{}: packets to {peer} would leave with source {source} ({link}) instead of the advertised {advertised}: {}",
                settings.node,
                cure(settings, actual, *peer),
            );
            let mismatch = SourceMismatch {
                peer: IpAddr::V4(*peer),
                source: IpAddr::V4(*source),
                problem,
            };
            (*peer, mismatch)
        })
        .collect()
}

/// What to do about a wrong source.
fn cure(settings: &Settings, actual: &Actual, peer: Ipv4Addr) -> String {
    let address = settings.address;
    let Some(table) = settings.pin_table else {
        return format!(
            "set routes.sourcePin to on, or give the host a route `{peer} … src {address}`; other nodes may drop them"
        );
    };
    if actual.link_with_address(IpAddr::V4(address)).is_none() {
        return format!("no link has {address}; add it again, or set node.address to one that is there");
    }
    let key = RouteKey {
        table,
        prefix: IpNet::from(IpAddr::V4(peer)),
        metric: 0,
    };
    let ruled = actual
        .rules()
        .any(|rule| rule.table == table && rule.protocol == settings.protocol);
    if !ruled || actual.route(&key).is_none() {
        return format!(
            "the route to {peer} in table {table}, or the rule to it, is missing; look for why it failed"
        );
    }
    format!(
        "the kernel does not follow table {table}; look in `ip rule` for one before {PIN_PRIORITY} that takes protocol 4"
    )
}

/// Whether the kernel may choose another source for encapsulated packets after this.
pub(super) fn touches_sources(change: &Change) -> bool {
    match change {
        Change::AddRule(_) | Change::DeleteRule(_) => true,
        Change::ReplaceRoute(route) | Change::DeleteRoute(route) => route.key.table != MAIN_TABLE,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::{Address, Link, NextHop, Route, RouteKind, Rule, Snapshot};

    const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 111);
    const FIRST: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 113);
    const ADVERTISED: Ipv4Addr = Ipv4Addr::new(192, 168, 3, 113);

    fn settings() -> Settings {
        Settings {
            node: "node4".into(),
            address: ADVERTISED,
            protocol: 86,
            tunnel_mtu: None,
            path_mtu_discovery: None,
            pin_table: Some(886),
        }
    }

    fn kernel() -> Snapshot {
        let link = |index, name: &str| Link {
            index,
            name: name.into(),
            up: true,
            running: true,
            mtu: 1500,
            kind: None,
            path_mtu_discovery: None,
        };
        let at = |link, address: Ipv4Addr| Address {
            link,
            net: IpNet::new(address.into(), 24).unwrap(),
        };
        let pin = Route {
            key: RouteKey {
                table: 886,
                prefix: IpNet::from(IpAddr::V4(PEER)),
                metric: 0,
            },
            kind: RouteKind::Unicast,
            next_hops: vec![NextHop {
                gateway: None,
                link: 2,
                onlink: false,
                weight: 1,
            }],
            source: Some(ADVERTISED.into()),
            protocol: 86,
            scope: 253,
            mtu: None,
        };
        let rule = Rule {
            priority: PIN_PRIORITY,
            ip_protocol: Some(4),
            table: 886,
            protocol: 86,
        };
        Snapshot {
            links: vec![link(2, "eth0"), link(3, "eth1")],
            addresses: vec![at(2, FIRST), at(3, ADVERTISED)],
            routes: vec![pin],
            rules: vec![rule],
            forwarding: true,
            ..Snapshot::default()
        }
    }

    /// What is told of a kernel that answers with `source`.
    fn told(settings: &Settings, kernel: Snapshot, source: Ipv4Addr) -> Option<String> {
        let found = BTreeMap::from([(PEER, source)]);
        let mut all = mismatches(settings, &Actual::new(kernel), &found);
        all.remove(&PEER).map(|mismatch| mismatch.problem)
    }

    #[test]
    fn a_wrong_source_is_told_with_both_addresses_the_nic_and_what_to_do() {
        let begin = "node4: packets to 192.168.0.111 would leave with source 192.168.0.113 (eth0) instead of the \
                     advertised 192.168.3.113: ";
        let off = Settings {
            pin_table: None,
            ..settings()
        };
        let mut no_rule = kernel();
        no_rule.rules.clear();
        let mut no_pin = kernel();
        no_pin.routes.clear();
        let mut no_address = kernel();
        no_address.addresses.pop();
        for (settings, kernel, cure) in [
            (off, kernel(), "routes.sourcePin"),
            (settings(), no_rule, "missing"),
            (settings(), no_pin, "missing"),
            (settings(), no_address, "add it again"),
            (settings(), kernel(), "`ip rule`"),
        ] {
            let sentence = told(&settings, kernel, FIRST).unwrap();
            assert!(
                sentence.starts_with(begin) && sentence.contains(cure),
                "{sentence}"
            );
        }
        assert_eq!(told(&settings(), kernel(), ADVERTISED), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_kernel_is_asked_soon_after_something_happened_and_then_now_and_then() {
        let actual = Actual::new(kernel());
        let mut check = SourceCheck::default();
        check.ask_soon();
        assert_eq!(check.due(), None, "there is nobody to ask about");
        check.ask_about(&BTreeSet::from([PEER]));
        let soon = Instant::now() + SETTLE;
        assert_eq!(check.due(), Some(soon));
        tokio::time::advance(SETTLE / 2).await;
        check.ask_soon();
        assert_eq!(check.due(), Some(soon), "a burst does not put it off");

        let answer = |source| {
            move |peers: BTreeSet<Ipv4Addr>| Ok(peers.into_iter().map(|peer| (peer, source)).collect())
        };
        check.ask(&settings(), &actual, answer(FIRST));
        assert_eq!(check.due(), Some(Instant::now() + INTERVAL));
        assert_eq!(check.source_to(PEER.into()), Some(FIRST.into()));
        assert_eq!(check.mismatches().len(), 1);
        check.ask(&settings(), &actual, answer(ADVERTISED));
        assert_eq!(check.mismatches(), []);

        check.ask(&settings(), &actual, |_| Err(io::Error::from_raw_os_error(1)));
        assert_eq!(check.source_to(PEER.into()), None);
        assert!(check.refused().is_some_and(|why| why.contains("CAP_NET_RAW")));
        check.ask(&settings(), &actual, answer(ADVERTISED));
        assert_eq!(check.refused(), None);

        check.ask_about(&BTreeSet::new());
        assert_eq!((check.due(), check.source_to(PEER.into())), (None, None));
    }
}
