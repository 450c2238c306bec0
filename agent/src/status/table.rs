//! The status in the form that operators of Calico know from `calicoctl node status`, and below it what that one does
//! not tell.

use std::fmt::Write as _;
use std::net::IpAddr;

use comfy_table::Table;
use jiff::{Timestamp, Zoned};

use super::{AgentStatus, FirewallStatus, PROBLEMS_NAMED, PeerRoutes, PeerStatus, uptime};
use crate::table::{boxed, printable};

/// The columns of calicoctl.
const COLUMNS: [&str; 5] = ["PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"];

/// Those that calicoctl does not have.
const FURTHER_COLUMNS: [&str; 9] = [
    "NODE",
    "OUTER SOURCE",
    "RECEIVED",
    "ACCEPTED",
    "PROGRAMMED",
    "SENT",
    "UPTIME",
    "FLAPS",
    "LAST ERROR",
];

/// So many sources of refused packets are named before they are only counted.
const SOURCES_NAMED: usize = 8;

impl AgentStatus {
    /// The status as text, with times in the zone of `now`: those of today as a time, older ones as a date.
    #[must_use]
    pub fn render(&self, now: &Zoned) -> String {
        self.text(|peers| peer_table(peers, now))
    }

    /// As [`render`](Self::render), with what calicoctl does not tell of a peer in further columns: the node it is, the
    /// source of tunnelled packets to it, how many prefixes came from it, were let in, are in the kernel and went to it, how
    /// long the session stands, how often it was lost, and why.
    #[must_use]
    pub fn render_wide(&self, now: &Zoned) -> String {
        self.text(|peers| self.wide_peer_table(peers, now))
    }

    /// The peers alone, with all columns.
    #[must_use]
    pub fn render_peers(&self, now: &Zoned) -> String {
        if self.peers.is_empty() {
            return "No peers.\n".to_owned();
        }
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_by_key(|peer| peer.address);
        format!("{}\n", self.wide_peer_table(&peers, now))
    }

    fn text(&self, table: impl Fn(&[&PeerStatus]) -> Table) -> String {
        let mut text = "Culvert agent is running.\n".to_owned();
        for (family, is_of_family) in [
            ("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
            ("IPv6", IpAddr::is_ipv6),
        ] {
            let mut peers: Vec<_> = self
                .peers
                .iter()
                .filter(|peer| is_of_family(&peer.address))
                .collect();
            peers.sort_by_key(|peer| peer.address);
            let _ = writeln!(text, "\n{family} BGP status");
            if peers.is_empty() {
                let _ = writeln!(text, "No {family} peers found.");
            } else {
                let _ = writeln!(text, "{}", table(&peers));
            }
        }
        text.push('\n');
        for line in self.remarks() {
            let _ = writeln!(text, "{}", printable(&line));
        }
        text
    }

    fn wide_peer_table(&self, peers: &[&PeerStatus], now: &Zoned) -> Table {
        let mut table = boxed(COLUMNS.into_iter().chain(FURTHER_COLUMNS));
        for peer in peers {
            let routes = |count: &dyn Fn(&PeerRoutes) -> usize| {
                let counted = self.peer_routes.get(&peer.address);
                counted.map_or_else(|| "-".to_owned(), |routes| count(routes).to_string())
            };
            let further = [
                peer.node.as_deref().map_or_else(|| "-".to_owned(), printable),
                self.outer_source(peer),
                peer.prefixes_received.to_string(),
                routes(&|routes| routes.accepted),
                routes(&|routes| routes.programmed),
                peer.prefixes_sent.to_string(),
                if peer.is_established() {
                    uptime(peer.since, now.timestamp())
                } else {
                    "-".to_owned()
                },
                peer.flaps().to_string(),
                last_error(peer, now),
            ];
            table.add_row(row(peer, now).into_iter().chain(further));
        }
        table
    }

    /// The source of tunnelled packets to a peer, marked where it is not the advertised address.
    fn outer_source(&self, peer: &PeerStatus) -> String {
        let is_wrong = self.sources.mismatches.iter().any(|m| m.peer == peer.address);
        match peer.outer_source {
            Some(source) if is_wrong => format!("{source} (wrong)"),
            Some(source) => source.to_string(),
            None => "-".to_owned(),
        }
    }

    /// What calicoctl does not tell, a line each.
    fn remarks(&self) -> Vec<String> {
        let routes = &self.routes;
        let mut lines = vec![format!(
            "Routes: {} of {} are in the kernel.",
            routes.programmed, routes.desired
        )];
        lines.extend(
            routes
                .failed
                .iter()
                .map(|p| format!("  failed: {}: {}", p.route, p.reason)),
        );
        lines.extend(
            routes
                .rejected
                .iter()
                .map(|p| format!("  not used: {}: {}", p.route, p.reason)),
        );
        lines.extend(self.source_remarks());
        lines.extend(self.firewall.remarks());
        lines.push(if self.blocks.is_empty() {
            "Blocks: none.".to_owned()
        } else {
            let blocks: Vec<_> = self.blocks.iter().map(ToString::to_string).collect();
            let addresses = if self.addresses_in_use == 1 {
                "address"
            } else {
                "addresses"
            };
            format!(
                "Blocks: {} ({} {addresses} in use).",
                blocks.join(", "),
                self.addresses_in_use
            )
        });
        if let Some(address) = self.tunnel_address {
            lines.push(format!("Tunnel address: {address}."));
        }
        if let Some(problem) = &self.datastore.problem {
            lines.push(format!("Datastore: {problem}."));
        }
        lines.extend(self.problems.iter().map(|problem| format!("Problem: {problem}.")));
        let faults = self.session_faults.iter().take(PROBLEMS_NAMED);
        lines.extend(faults.map(|fault| format!("Session: {fault}.")));
        lines.push(match self.ready() {
            Ok(()) => "Ready: yes.".to_owned(),
            Err(reason) => format!("Ready: no: {reason}."),
        });
        lines
    }

    /// What is wrong with the source of encapsulated packets, a line each; of many nodes the first are named.
    fn source_remarks(&self) -> Vec<String> {
        let mismatches = &self.sources.mismatches;
        let named = mismatches.iter().take(PROBLEMS_NAMED);
        let mut lines: Vec<_> = named.map(|m| format!("Wrong source: {}.", m.problem)).collect();
        if mismatches.len() > PROBLEMS_NAMED {
            let more = mismatches.len() - PROBLEMS_NAMED;
            lines.push(format!("Wrong source: packets to {more} more nodes."));
        }
        let problems = self.sources.problems.iter();
        lines.extend(problems.map(|problem| format!("Source: {problem}.")));
        lines
    }
}

impl FirewallStatus {
    /// A line for each fault; none where all is well.
    fn remarks(&self) -> impl Iterator<Item = String> {
        let problem = self.problem.iter();
        let problem = problem.map(|problem| format!("Packet filter: not written: {problem}."));
        let refused = self
            .refused
            .iter()
            .take(SOURCES_NAMED)
            .map(|sentence| format!("Refused: {sentence}."));
        let more = self.refused.len().saturating_sub(SOURCES_NAMED);
        let more = (more > 0).then(|| format!("Refused: packets from {more} other sources."));
        problem.chain(refused).chain(more)
    }
}

/// Why a session with the peer, or an attempt at one, last failed, and when: the column before tells that of one that is down.
fn last_error(peer: &PeerStatus, now: &Zoned) -> String {
    match (&peer.reason, peer.failed) {
        (Some(reason), Some(failed)) => format!("{}: {}", time(failed, now), printable(reason)),
        (Some(reason), None) => printable(reason),
        (None, _) => "-".to_owned(),
    }
}

fn peer_table(peers: &[&PeerStatus], now: &Zoned) -> Table {
    let mut table = boxed(COLUMNS);
    table.add_rows(peers.iter().map(|peer| row(peer, now)));
    table
}

/// A peer in calicoctl's columns.
fn row(peer: &PeerStatus, now: &Zoned) -> [String; COLUMNS.len()] {
    [
        peer.address.to_string(),
        peer.r#type.as_str().to_owned(),
        protocol_state(&peer.state).to_owned(),
        time(peer.since, now),
        info(peer, now),
    ]
}

/// BIRD's state of the protocol that stands for a session: `up` with the session, `down` while it does not try,
/// `start` in between.
fn protocol_state(session: &str) -> &'static str {
    match session {
        "Established" => "up",
        "Idle" => "down",
        _ => "start",
    }
}

/// A time of today, or the day of an older one.
fn time(then: Timestamp, now: &Zoned) -> String {
    let then = then.to_zoned(now.time_zone().clone());
    let format = if then.date() == now.date() {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d"
    };
    then.strftime(format).to_string()
}

/// The state, why it is not Established, and how often that was so and when, where it was more than once.
fn info(peer: &PeerStatus, now: &Zoned) -> String {
    let mut info = peer.state.clone();
    if let Some(reason) = peer.reason.as_ref().filter(|_| peer.state != "Established") {
        let _ = write!(info, ": {reason}");
        if let (2.., Some(failed)) = (peer.failures, peer.failed) {
            let _ = write!(
                info,
                " ({} failures, the last {})",
                peer.failures,
                time(failed, now)
            );
        }
    }
    if peer.stale {
        info.push_str(" (its routes are kept until it is back)");
    }
    printable(&info)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::super::{PeerType, RouteProblem, RouteStatus, SourceMismatch, SourceStatus};
    use super::*;
    use crate::fixtures::{mesh_peer, settled};

    fn now() -> Zoned {
        date(2026, 11, 21).at(23, 59, 0, 0).in_tz("UTC").unwrap()
    }

    fn peer(address: &str, state: &str, since: &str) -> PeerStatus {
        PeerStatus {
            since: since.parse().unwrap(),
            ..mesh_peer(address, state)
        }
    }

    fn status(peers: Vec<PeerStatus>) -> AgentStatus {
        AgentStatus {
            peers,
            addresses_in_use: 3,
            ..settled()
        }
    }

    /// The box of calicoctl's documentation, with the header to the left as its present table library sets it.
    #[test]
    fn one_established_peer_looks_as_calicoctl_prints_it() {
        let text = status(vec![peer("172.17.8.102", "Established", "2026-11-21T23:30:04Z")]).render(&now());
        let expected = "\
Culvert agent is running.

IPv4 BGP status
+--------------+-------------------+-------+----------+-------------+
| PEER ADDRESS | PEER TYPE         | STATE | SINCE    | INFO        |
+--------------+-------------------+-------+----------+-------------+
| 172.17.8.102 | node-to-node mesh | up    | 23:30:04 | Established |
+--------------+-------------------+-------+----------+-------------+

IPv6 BGP status
No IPv6 peers found.

Routes: 4 of 4 are in the kernel.
Blocks: 10.65.42.0/26 (3 addresses in use).
Ready: yes.
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_wide_table_tells_after_calicoctls_columns_what_became_of_the_peers_routes_and_session() {
        let mut right = peer("192.168.3.110", "Established", "2026-11-21T23:30:04Z");
        right.node = Some("node1".into());
        right.outer_source = Some("192.168.3.113".parse().unwrap());
        right.prefixes_received = 12;
        right.prefixes_sent = 1;
        right.established_count = 3;
        right.reason = Some("hold timer expired".into());
        right.failed = Some("2026-11-21T23:29:59Z".parse().unwrap());
        let mut wrong = peer("192.168.0.111", "Established", "2026-11-21T23:30:05Z");
        wrong.node = Some("node2".into());
        wrong.outer_source = Some("192.168.0.113".parse().unwrap());
        wrong.prefixes_received = 2;
        wrong.prefixes_sent = 1;
        let unknown = peer("192.168.0.1", "Active", "2026-11-21T23:30:06Z");
        let other_family = peer("fd00::1", "Idle", "2026-11-21T00:00:00Z");
        let mut status = status(vec![right, wrong, unknown, other_family]);
        let counted = PeerRoutes {
            accepted: 11,
            programmed: 10,
        };
        status.peer_routes = [("192.168.3.110".parse().unwrap(), counted)].into();
        status.sources.mismatches = vec![SourceMismatch {
            peer: "192.168.0.111".parse().unwrap(),
            source: "192.168.0.113".parse().unwrap(),
            problem: "node4: packets to 192.168.0.111 would leave with source 192.168.0.113 (eth0)".into(),
        }];
        let expected = "\
Culvert agent is running.

IPv4 BGP status
+---------------+-------------------+-------+----------+-------------+-------+-----------------------+----------+----------+------------+------+--------+-------+------------------------------+
| PEER ADDRESS  | PEER TYPE         | STATE | SINCE    | INFO        | NODE  | OUTER SOURCE          | RECEIVED | ACCEPTED | PROGRAMMED | SENT | UPTIME | FLAPS | LAST ERROR                   |
+---------------+-------------------+-------+----------+-------------+-------+-----------------------+----------+----------+------------+------+--------+-------+------------------------------+
| 192.168.0.1   | node-to-node mesh | start | 23:30:06 | Active      | -     | -                     | 0        | -        | -          | 0    | -      | 0     | -                            |
| 192.168.0.111 | node-to-node mesh | up    | 23:30:05 | Established | node2 | 192.168.0.113 (wrong) | 2        | -        | -          | 1    | 28m55s | 0     | -                            |
| 192.168.3.110 | node-to-node mesh | up    | 23:30:04 | Established | node1 | 192.168.3.113         | 12       | 11       | 10         | 1    | 28m56s | 2     | 23:29:59: hold timer expired |
+---------------+-------------------+-------+----------+-------------+-------+-----------------------+----------+----------+------------+------+--------+-------+------------------------------+

IPv6 BGP status
+--------------+-------------------+-------+----------+------+------+--------------+----------+----------+------------+------+--------+-------+------------+
| PEER ADDRESS | PEER TYPE         | STATE | SINCE    | INFO | NODE | OUTER SOURCE | RECEIVED | ACCEPTED | PROGRAMMED | SENT | UPTIME | FLAPS | LAST ERROR |
+--------------+-------------------+-------+----------+------+------+--------------+----------+----------+------------+------+--------+-------+------------+
| fd00::1      | node-to-node mesh | down  | 00:00:00 | Idle | -    | -            | 0        | -        | -          | 0    | -      | 0     | -          |
+--------------+-------------------+-------+----------+------+------+--------------+----------+----------+------------+------+--------+-------+------------+

Routes: 4 of 4 are in the kernel.
Wrong source: node4: packets to 192.168.0.111 would leave with source 192.168.0.113 (eth0).
Blocks: 10.65.42.0/26 (3 addresses in use).
Ready: yes.
";
        assert_eq!(status.render_wide(&now()), expected);
    }

    #[test]
    fn what_the_packet_filter_refuses_is_told_and_of_many_sources_the_rest_is_counted() {
        let mut status = status(vec![]);
        status.firewall.problem = Some("this kernel has no nf_tables".into());
        status.firewall.refused = (1..=10)
            .map(|n| format!("{n} packets from 192.0.2.{n}"))
            .collect();
        let text = status.render(&now());
        let lines: Vec<_> = text.lines().collect();
        for line in [
            "Packet filter: not written: this kernel has no nf_tables.",
            "Refused: 1 packets from 192.0.2.1.",
            "Refused: 8 packets from 192.0.2.8.",
            "Refused: packets from 2 other sources.",
            "Ready: yes.",
        ] {
            assert!(lines.contains(&line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("192.0.2.9"), "{text}");
    }

    #[test]
    fn peers_are_sorted_by_address_and_tell_why_they_are_not_up() {
        let mut refused = peer("172.18.0.12", "Active", "2026-11-21T10:00:00Z");
        refused.reason = Some("connection refused by 172.18.0.12:179".into());
        refused.failures = 3;
        refused.failed = Some("2026-11-21T10:00:07Z".parse().unwrap());
        let mut stale = peer("172.18.0.3", "Connect", "2026-11-20T23:59:59Z");
        stale.r#type = PeerType::Node;
        stale.stale = true;
        let mut idle = peer("fd00::1", "Idle", "2026-11-21T00:00:00Z");
        idle.r#type = PeerType::Global;
        idle.reason = Some("peer says \u{1b}[2Jbye\nbye".into());
        let text = status(vec![refused, stale, idle]).render(&now());
        let expected = "\
IPv4 BGP status
+--------------+-------------------+-------+------------+-------------------------------------------------------------------------------+
| PEER ADDRESS | PEER TYPE         | STATE | SINCE      | INFO                                                                          |
+--------------+-------------------+-------+------------+-------------------------------------------------------------------------------+
| 172.18.0.3   | node specific     | start | 2026-11-20 | Connect (its routes are kept until it is back)                                |
| 172.18.0.12  | node-to-node mesh | start | 10:00:00   | Active: connection refused by 172.18.0.12:179 (3 failures, the last 10:00:07) |
+--------------+-------------------+-------+------------+-------------------------------------------------------------------------------+

IPv6 BGP status
+--------------+-----------+-------+----------+-----------------------------+
| PEER ADDRESS | PEER TYPE | STATE | SINCE    | INFO                        |
+--------------+-----------+-------+----------+-----------------------------+
| fd00::1      | global    | down  | 00:00:00 | Idle: peer says  [2Jbye bye |
+--------------+-----------+-------+----------+-----------------------------+
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn problems_are_told_below_the_tables() {
        let mut status = status(vec![]);
        status.routes = RouteStatus {
            desired: 2,
            programmed: 1,
            failed: vec![RouteProblem {
                route: "10.65.17.64/26".into(),
                reason: "no such device".into(),
            }],
            rejected: vec![RouteProblem {
                route: "10.65.1.0/26".into(),
                reason: "next hop in a pool".into(),
            }],
        };
        status.blocks.clear();
        status.tunnel_address = Some("10.65.42.0".parse().unwrap());
        status.datastore.problem = Some("gone".into());
        let text = status.render(&now());
        let expected = "
IPv4 BGP status
No IPv4 peers found.

IPv6 BGP status
No IPv6 peers found.

Routes: 1 of 2 are in the kernel.
  failed: 10.65.17.64/26: no such device
  not used: 10.65.1.0/26: next hop in a pool
Blocks: none.
Tunnel address: 10.65.42.0.
Datastore: gone.
Ready: no: node a has no block of pod addresses yet.
";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn wrong_sources_are_told_the_first_of_them_in_full() {
        let mut status = status(vec![]);
        let mismatch = |n: u8| SourceMismatch {
            peer: [192, 168, 0, n].into(),
            source: [192, 168, 0, 113].into(),
            problem: format!("node4: packets to 192.168.0.{n} would leave with source 192.168.0.113 (eth0)"),
        };
        status.sources = SourceStatus {
            mismatches: vec![mismatch(111)],
            problems: vec!["no permission".into()],
        };
        let expected = "
Wrong source: node4: packets to 192.168.0.111 would leave with source 192.168.0.113 (eth0).
Source: no permission.
Blocks:";
        let text = status.render(&now());
        assert!(text.contains(expected), "{text}");
        status.sources.mismatches = (1..=5).map(mismatch).collect();
        let text = status.render(&now());
        assert!(text.contains("192.168.0.3 would"), "{text}");
        assert!(
            text.contains("\nWrong source: packets to 2 more nodes.\n"),
            "{text}"
        );
    }

    #[test]
    fn times_are_those_of_the_readers_zone() {
        let late = date(2026, 11, 21).at(0, 30, 0, 0).in_tz("UTC").unwrap();
        let east = late.with_time_zone(jiff::tz::TimeZone::fixed(jiff::tz::offset(2)));
        let peer = peer("10.0.0.1", "Established", "2026-11-20T23:30:00Z");
        assert_eq!(time(peer.since, &late), "2026-11-20");
        assert_eq!(time(peer.since, &east), "01:30:00");
    }
}
