//! The table `ip culvert`: its chains, sets and rules, as the kernel takes them and gives them back.
//!
//! ```text
//! chain input { type filter hook input priority -10
//!     ip protocol != 4 accept
//!     ip saddr @nodes accept
//!     update @refused { ip saddr timeout 1h counter }      # does nothing once @refused is full
//!     counter drop
//! }
//! chain postrouting { type nat hook postrouting priority 100
//!     ip saddr @masqueraded ip daddr != @pools ip daddr != @nodes masquerade fully-random
//!     oifname "tunl0" fib saddr . oif type != local fib saddr type local masquerade fully-random
//! }
//! ```
//!
//! The last rule is for host → service → remote pod: the host chose its source for the service's address, before that
//! was replaced by a pod's behind the tunnel. The reply would go to an address that is not the tunnel's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sha1::{Digest, Sha1};

use super::expression::{
    DESTINATION, REGISTER, SOURCE, address_type, compare, counter, expression, lookup, masquerade, payload,
    verdict,
};
use super::message::{self, Attributes, Kind, Message, flag};
use crate::filter::{Filter, UnknownTunnelPeers};

/// Its name.
pub(super) const TABLE: &str = "culvert";

/// The set of sources that were refused.
pub(super) const REFUSED: &str = "refused";

/// How many sources are counted apart. Whoever forges sources fills this and no more; the rest is in the total.
const REFUSED_SOURCES: u32 = 1024;

/// How long a source is remembered after its last packet, in milliseconds.
const REFUSED_TIMEOUT: u64 = 3_600_000;

/// A message may hold so many elements: the list is one attribute, of at most 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 1000;

/// An element of a set: its key, and whether a range ends before it (`NFT_SET_ELEM_INTERVAL_END`).
pub(super) type Element = (u32, bool);

/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// A base chain: where it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    kind: &'static str,
    /// `NF_INET_*`.
    hook: u32,
    priority: i32,
}

pub(super) const INPUT: Chain = Chain {
    name: "input",
    kind: "filter",
    hook: 1,
    priority: -10,
};

const POSTROUTING: Chain = Chain {
    name: "postrouting",
    kind: "nat",
    hook: 4,
    priority: 100,
};

struct Set {
    name: &'static str,
    /// `NFT_SET_*`.
    flags: u32,
    identity: u32,
}

/// `NFT_SET_INTERVAL`, and `NFT_SET_TIMEOUT` with `NFT_SET_EVAL`.
const INTERVAL: u32 = 0x4;
const DYNAMIC: u32 = 0x30;

const SETS: [Set; 4] = [
    Set {
        name: "nodes",
        flags: 0,
        identity: 1,
    },
    Set {
        name: "pools",
        flags: INTERVAL,
        identity: 2,
    },
    Set {
        name: "masqueraded",
        flags: INTERVAL,
        identity: 3,
    },
    Set {
        name: REFUSED,
        flags: DYNAMIC,
        identity: 4,
    },
];

struct Rule {
    chain: &'static str,
    words: &'static str,
    expressions: Vec<Attributes>,
}

/// What the kernel should hold, ready to be compared and written.
pub(super) struct Table {
    chains: Vec<Chain>,
    /// Chain, expressions and comment of each rule. The comment holds a digest of all that is fixed here, so that it
    /// tells a rule of ours from one that was changed, and this version's from another's.
    rules: Vec<(&'static str, Attributes, String)>,
    elements: BTreeMap<&'static str, BTreeSet<Element>>,
}

/// What the kernel holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Flags of the table (`dormant`).
    pub(super) flags: u32,
    /// Hook, priority, type and policy of the base chains.
    pub(super) chains: Vec<Option<(u32, i32, String, u32)>>,
    /// The comments of the rules, in their order, by chain.
    pub(super) rules: BTreeMap<String, Vec<String>>,
    pub(super) elements: BTreeMap<&'static str, BTreeSet<Element>>,
}

impl Table {
    pub(super) fn new(filter: &Filter, tunnel: &str) -> Self {
        let refuses = filter.unknown_tunnel_peers == UnknownTunnelPeers::Drop;
        let mut chains = vec![POSTROUTING];
        let mut rules = postrouting(tunnel);
        if refuses {
            chains.insert(0, INPUT);
            rules = input().into_iter().chain(rules).collect();
        }
        let mut digest = Sha1::new();
        for chain in &chains {
            digest.update(chain.attributes().bytes());
        }
        for set in &SETS {
            digest.update(set.attributes().bytes());
        }
        let rules: Vec<_> = rules
            .into_iter()
            .map(|rule| {
                let add = |list: Attributes, one: &Attributes| list.with_nested(1, one);
                (rule, add)
            })
            .map(|(rule, add)| {
                let list = rule.expressions.iter().fold(Attributes::new(), add);
                digest.update(rule.chain);
                digest.update(list.bytes());
                (rule.chain, list, rule.words)
            })
            .collect();
        let mut version = String::new();
        for byte in digest.finalize().iter().take(4) {
            let _ = write!(version, "{byte:02x}");
        }
        let rules = rules
            .into_iter()
            .map(|(chain, list, words)| (chain, list, format!("culvert {version}: {words}")));
        let nodes = filter.nodes.iter().map(|node| (u32::from(*node), false));
        let elements = [
            ("nodes", nodes.collect()),
            ("pools", ranges(&filter.pools)),
            ("masqueraded", ranges(&filter.masqueraded)),
        ];
        Self {
            chains,
            rules: rules.collect(),
            elements: elements.into_iter().collect(),
        }
    }

    pub(super) fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// The sets whose elements are ours to say.
    pub(super) fn sets(&self) -> impl Iterator<Item = &'static str> {
        self.elements.keys().copied()
    }

    /// Whether all but the elements is as it should be.
    pub(super) fn has_frame_of(&self, found: &Found) -> bool {
        // NF_ACCEPT.
        let chain = |chain: &Chain| Some((chain.hook, chain.priority, chain.kind.to_owned(), 1));
        let mut rules: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (chain, _, comment) in &self.rules {
            rules
                .entry((*chain).to_owned())
                .or_default()
                .push(comment.clone());
        }
        found.flags == 0
            && found.chains.iter().cloned().eq(self.chains.iter().map(chain))
            && found.rules == rules
    }

    /// The messages that make all of it anew.
    pub(super) fn write(&self) -> Vec<Message> {
        let create = |kind, attributes, what: String| Message::new(kind, flag::CREATE, attributes, what);
        let name = Attributes::new().with_text(1, TABLE).with_u32(2, 0);
        let table = create(
            Kind::NewTable,
            name.clone(),
            "create the nftables table ip culvert".into(),
        );
        // A table that is not there cannot be deleted: so it is made first.
        let mut messages = vec![
            table.clone(),
            Message::new(
                Kind::DeleteTable,
                0,
                named(TABLE),
                "delete the former nftables table ip culvert",
            ),
            table,
        ];
        for chain in &self.chains {
            let purpose = format!("create the nftables chain {} of ip culvert", chain.name);
            messages.push(create(Kind::NewChain, chain.attributes(), purpose));
        }
        for set in &SETS {
            let purpose = format!("create the nftables set {} of ip culvert", set.name);
            messages.push(create(Kind::NewSet, set.attributes(), purpose));
        }
        for (set, elements) in &self.elements {
            messages.extend(add_elements(set, elements));
        }
        for (chain, expressions, comment) in &self.rules {
            let attributes = named(TABLE)
                .with_text(2, chain)
                .with_nested(4, expressions)
                .with(7, &user_data(comment));
            let purpose = format!("add a rule to the nftables chain {chain} of ip culvert ({comment})");
            messages.push(Message::new(
                Kind::NewRule,
                flag::CREATE | flag::APPEND,
                attributes,
                purpose,
            ));
        }
        messages
    }

    /// The messages that give the sets their elements; none where they have them.
    pub(super) fn write_elements(&self, found: &Found) -> Vec<Message> {
        let mut messages = Vec::new();
        for (set, elements) in &self.elements {
            if found.elements.get(set) == Some(elements) {
                continue;
            }
            // Without a list, all elements. Within one transaction no packet sees the set empty.
            let all = named(TABLE).with_text(2, set);
            let purpose = format!("empty the nftables set {set} of ip culvert");
            messages.push(Message::new(Kind::DeleteElements, 0, all, purpose));
            messages.extend(add_elements(set, elements));
        }
        messages
    }
}

impl Chain {
    fn attributes(self) -> Attributes {
        let priority = u32::from_be_bytes(self.priority.to_be_bytes());
        let hook = Attributes::new().with_u32(1, self.hook).with_u32(2, priority);
        // NF_ACCEPT.
        named(TABLE)
            .with_text(3, self.name)
            .with_nested(4, &hook)
            .with_u32(5, 1)
            .with_text(7, self.kind)
    }

    /// What the kernel tells of a chain.
    pub(super) fn read(attributes: &[u8]) -> Option<(u32, i32, String, u32)> {
        let hook = message::find(attributes, 4)?;
        let number = |kind| message::find(hook, kind).and_then(message::u32_of);
        let policy = message::find(attributes, 5).and_then(message::u32_of)?;
        let kind = message::text(message::find(attributes, 7)?);
        Some((
            number(1)?,
            i32::from_be_bytes(number(2)?.to_be_bytes()),
            kind,
            policy,
        ))
    }
}

impl Set {
    fn attributes(&self) -> Attributes {
        // nft's number for ipv4_addr, by which it prints the elements.
        const IPV4_ADDRESS: u32 = 7;
        let set = named(TABLE)
            .with_text(2, self.name)
            .with_u32(3, self.flags)
            .with_u32(4, IPV4_ADDRESS)
            .with_u32(5, 4)
            .with_u32(10, self.identity);
        if self.flags != DYNAMIC {
            return set;
        }
        let size = Attributes::new().with_u32(1, REFUSED_SOURCES);
        set.with_nested(9, &size).with_u64(11, REFUSED_TIMEOUT)
    }
}

/// The sets by name, each with whether its elements are ends of ranges.
pub(super) fn sets() -> impl Iterator<Item = (&'static str, bool)> {
    SETS.iter().map(|set| (set.name, set.flags == INTERVAL))
}

/// Tables, chains, rules and sets alike have the table's name as attribute 1.
pub(super) fn named(table: &str) -> Attributes {
    Attributes::new().with_text(1, table)
}

fn add_elements(set: &str, elements: &BTreeSet<Element>) -> Vec<Message> {
    let elements: Vec<_> = elements.iter().copied().collect();
    let message = |part: &[Element]| {
        let list = part.iter().fold(Attributes::new(), |list, (key, end)| {
            let key = Attributes::new().with_nested(1, &Attributes::new().with_u32(1, *key));
            list.with_nested(1, &if *end { key.with_u32(3, INTERVAL_END) } else { key })
        });
        let attributes = named(TABLE).with_text(2, set).with_nested(3, &list);
        let purpose = format!("fill the nftables set {set} of ip culvert");
        Message::new(Kind::NewElements, flag::CREATE, attributes, purpose)
    };
    elements.chunks(ELEMENTS_PER_MESSAGE).map(message).collect()
}

/// The elements in one message of a dump, with what is inside each.
pub(super) fn read_elements(attributes: &[u8]) -> impl Iterator<Item = (Element, &[u8])> {
    let list = message::find(attributes, 3).unwrap_or_default();
    message::all(list).filter_map(|(_, element)| {
        let key = message::find(message::find(element, 1)?, 1).and_then(message::u32_of)?;
        let flags = message::find(element, 3).and_then(message::u32_of).unwrap_or(0);
        Some(((key, flags & INTERVAL_END != 0), element))
    })
}

/// Packets of a source that was refused.
pub(super) fn read_refused(element: (Element, &[u8])) -> Option<(Ipv4Addr, u64)> {
    let ((key, _), inner) = element;
    let packets = read_counter(message::find(inner, 7)?)?;
    Some((Ipv4Addr::from(key), packets))
}

/// The packets of an expression, if it is a counter.
fn read_counter(expression: &[u8]) -> Option<u64> {
    let name = message::text(message::find(expression, 1)?);
    let values = message::find(expression, 2).filter(|_| name == "counter")?;
    message::find(values, 2).and_then(message::u64_of)
}

/// Chain and comment of a rule, and the packets of the counter in it.
pub(super) fn read_rule(attributes: &[u8]) -> Option<(String, String, Option<u64>)> {
    let chain = message::text(message::find(attributes, 2)?);
    let comment = message::find(attributes, 7)
        .and_then(read_user_data)
        .unwrap_or_default();
    let expressions = message::find(attributes, 4).unwrap_or_default();
    let packets = message::all(expressions).find_map(|(_, expression)| read_counter(expression));
    Some((chain, comment, packets))
}

/// A rule's comment as nft keeps it: a type (0), a length, text that ends in a zero byte.
fn user_data(comment: &str) -> Vec<u8> {
    let text = comment.as_bytes();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![0, length];
    data.extend(text);
    data.push(0);
    data
}

fn read_user_data(data: &[u8]) -> Option<String> {
    let (&kind, rest) = data.split_first()?;
    let (_, text) = rest.split_first()?;
    (kind == 0).then(|| message::text(text))
}

/// The ranges that the networks cover, without overlaps: nested and adjacent ones are one.
fn ranges(nets: &BTreeSet<Ipv4Net>) -> BTreeSet<Element> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    // In this order of networks a range begins no earlier than the one before.
    for net in nets {
        let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
        match ranges.last_mut() {
            Some((_, end)) if u64::from(first) <= u64::from(*end) + 1 => *end = last.max(*end),
            _ => ranges.push((first, last)),
        }
    }
    let mut elements = BTreeSet::new();
    for (first, last) in ranges {
        elements.insert((first, false));
        // A range up to the last address of all has no end.
        if let Some(after) = last.checked_add(1) {
            elements.insert((after, true));
        }
    }
    elements
}

fn input() -> Vec<Rule> {
    let rule = |words, expressions| Rule {
        chain: INPUT.name,
        words,
        expressions,
    };
    let count = Attributes::new()
        .with_text(1, REFUSED)
        .with_u32(3, 1) // NFT_DYNSET_OP_UPDATE
        .with_u32(4, REGISTER)
        .with_u64(6, REFUSED_TIMEOUT)
        .with_nested(7, &counter());
    vec![
        rule("not IPIP", vec![payload(9, 1), compare(false, &[4]), verdict(1)]),
        rule(
            "IPIP from a node",
            vec![SOURCE.load(), lookup("nodes", true), verdict(1)],
        ),
        rule(
            "IPIP from elsewhere, by source",
            vec![SOURCE.load(), expression("dynset", &count)],
        ),
        rule("IPIP from elsewhere", vec![counter(), verdict(0)]),
    ]
}

fn postrouting(tunnel: &str) -> Vec<Rule> {
    let rule = |words, expressions| Rule {
        chain: POSTROUTING.name,
        words,
        expressions,
    };
    // IFNAMSIZ: the kernel compares names at their full length.
    let mut name = tunnel.as_bytes().to_vec();
    name.resize(16, 0);
    // NFT_META_OIFNAME.
    let output = Attributes::new().with_u32(1, REGISTER).with_u32(2, 7);
    // NFTA_FIB_F_SADDR, alone and with NFTA_FIB_F_OIF; RTN_LOCAL.
    let local = 2_u32.to_ne_bytes();
    vec![
        rule(
            "natOutgoing",
            vec![
                SOURCE.load(),
                lookup("masqueraded", true),
                DESTINATION.load(),
                lookup("pools", false),
                DESTINATION.load(),
                lookup("nodes", false),
                masquerade(),
            ],
        ),
        rule(
            "this host to a service and a remote pod",
            vec![
                expression("meta", &output),
                compare(true, &name),
                address_type(0x11),
                compare(false, &local),
                address_type(0x01),
                compare(true, &local),
                masquerade(),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(nets: &[&str]) -> Vec<(Ipv4Addr, bool)> {
        let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
        let elements = ranges(&nets).into_iter();
        elements.map(|(key, end)| (Ipv4Addr::from(key), end)).collect()
    }

    fn element(key: &str, end: bool) -> (Ipv4Addr, bool) {
        (key.parse().unwrap(), end)
    }

    #[test]
    fn nested_and_adjacent_networks_are_one_range() {
        let one = vec![element("10.0.0.0", false), element("10.0.2.0", true)];
        assert_eq!(covered(&["10.0.0.0/23"]), one);
        assert_eq!(covered(&["10.0.0.0/24", "10.0.1.0/24"]), one);
        assert_eq!(covered(&["10.0.0.0/23", "10.0.0.64/26", "10.0.1.0/24"]), one);
    }

    #[test]
    fn networks_apart_are_ranges_apart_and_the_last_address_of_all_ends_no_range() {
        assert_eq!(
            covered(&["255.255.255.0/24", "10.0.0.0/24"]),
            [
                element("10.0.0.0", false),
                element("10.0.1.0", true),
                element("255.255.255.0", false),
            ]
        );
        assert!(covered(&[]).is_empty());
    }

    #[test]
    fn every_rule_says_in_a_comment_what_it_is_and_another_frame_has_other_comments() {
        let mut filter = Filter::default();
        let comments = |filter: &Filter| -> BTreeSet<String> {
            let rules = Table::new(filter, "tunl0").rules.into_iter();
            rules.map(|(_, _, comment)| comment).collect()
        };
        let dropping = comments(&filter);
        assert_eq!(dropping.len(), 6, "{dropping:?}");
        filter.nodes.insert(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(comments(&filter), dropping, "elements are no part of the frame");
        filter.unknown_tunnel_peers = UnknownTunnelPeers::Off;
        let open = comments(&filter);
        assert_eq!(open.len(), 2, "{open:?}");
        assert!(open.is_disjoint(&dropping), "{open:?} {dropping:?}");
    }

    #[test]
    fn a_comment_is_read_as_it_was_written() {
        assert_eq!(
            read_user_data(&user_data("culvert: a rule")).as_deref(),
            Some("culvert: a rule")
        );
        assert_eq!(read_user_data(&[]), None);
    }
}
