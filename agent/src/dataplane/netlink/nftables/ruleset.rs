//! The rules of nf_tables that look at IPv4 packets, whoever wrote them: read, and never written.

use std::collections::BTreeMap;

use super::connection::Connection;
use super::message::{Attributes, FAMILY, Kind, Message, all, find, text, u32_of, u64_of};
use super::table::{self, TABLE};
use crate::dataplane::{DataplaneError, xtables};
use crate::ruleset::{Action, Base, Chain, Field, Hook, Match, Program, Relation, Rule};

/// `NFPROTO_INET` and `NFPROTO_IPV4`.
const FAMILIES: [(u8, &str); 2] = [(1, "inet"), (FAMILY, "ip")];

/// So many sets are read at most; what asks others is not known.
const MOST_SETS: usize = 64;

/// So many elements of a set.
const MOST_ELEMENTS: usize = 4096;

/// A key, whether a range ends before it, and what is done with it in a map of verdicts.
struct Element {
    key: Vec<u8>,
    is_end: bool,
    action: Option<Action>,
}

/// The sets of a table, by name; none for one that is too large.
type Sets = BTreeMap<String, Option<Vec<Element>>>;

/// All chains but our own table's.
pub(super) async fn read(connection: &mut Connection) -> Result<Vec<Chain>, DataplaneError> {
    let mut chains = Vec::new();
    for (number, family) in FAMILIES {
        let ask = |kind, attributes| {
            Message::new(kind, 0, attributes, "read the rules of nf_tables").of_family(number)
        };
        let tables = connection.dump(&ask(Kind::GetTable, Attributes::new())).await?;
        for table in tables.unwrap_or_default() {
            // NFT_TABLE_F_DORMANT.
            let sleeps = find(&table, 2).and_then(u32_of).unwrap_or(0) & 1 != 0;
            let name = find(&table, 1).map(text).unwrap_or_default();
            if sleeps || (family, name.as_str()) == ("ip", TABLE) {
                continue;
            }
            let found = connection.dump(&ask(Kind::GetChain, table::named(&name))).await?;
            let of_table =
                |found: &[u8], at: u16| find(found, at).map(text).is_some_and(|other| other == name);
            let mut of_this: Vec<Chain> = found
                .unwrap_or_default()
                .iter()
                .filter(|found| of_table(found, 1))
                .filter_map(|found| chain(found, family, &name))
                .collect();
            let rules = connection.dump(&ask(Kind::GetRule, table::named(&name))).await?;
            let rules: Vec<Vec<u8>> = rules
                .unwrap_or_default()
                .into_iter()
                .filter(|rule| of_table(rule, 1))
                .collect();
            let mut sets = Sets::new();
            for set in rules.iter().flat_map(|rule| sets_of(rule)) {
                if sets.len() >= MOST_SETS || sets.contains_key(&set) {
                    continue;
                }
                let of = table::named(&name).with_text(2, &set);
                let parts = connection.dump(&ask(Kind::GetElements, of)).await?;
                sets.insert(set, parts.and_then(|parts| elements(&parts)));
            }
            for rule in &rules {
                let of = find(rule, 2).map(text).unwrap_or_default();
                if let Some(chain) = of_this.iter_mut().find(|chain| chain.name == of) {
                    chain.rules.extend(read_rule(rule, &sets));
                }
            }
            chains.extend(of_this);
        }
    }
    Ok(chains)
}

/// A chain without its rules; none for one that translates addresses.
fn chain(attributes: &[u8], family: &'static str, table: &str) -> Option<Chain> {
    let base = match find(attributes, 4) {
        None => None,
        Some(_) if find(attributes, 7).map(text).is_some_and(|kind| kind == "nat") => return None,
        Some(hook) => Some(Base {
            hook: Hook::of(find(hook, 1).and_then(u32_of)?)?,
            priority: find(hook, 2).and_then(u32_of)?.cast_signed(),
            // NF_DROP.
            drops: find(attributes, 5).and_then(u32_of) == Some(0),
            packets: find(attributes, 8).and_then(|counters| find(counters, 2).and_then(u64_of)),
        }),
    };
    Some(Chain {
        program: Program::Nftables,
        family,
        table: table.to_owned(),
        name: find(attributes, 3).map(text)?,
        base,
        rules: Vec::new(),
    })
}

/// The expressions of a rule: name and attributes of each.
fn expressions(rule: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    all(find(rule, 4).unwrap_or_default()).filter_map(|(_, expression)| {
        let name = find(expression, 1).map(text)?;
        Some((name, find(expression, 2).unwrap_or_default()))
    })
}

fn sets_of(rule: &[u8]) -> Vec<String> {
    expressions(rule)
        .filter(|(name, _)| name == "lookup")
        .filter_map(|(_, of)| find(of, 1).map(text))
        .collect()
}

fn elements(parts: &[Vec<u8>]) -> Option<Vec<Element>> {
    let mut found = Vec::new();
    for part in parts {
        for (_, element) in all(find(part, 3).unwrap_or_default()) {
            if found.len() >= MOST_ELEMENTS {
                return None;
            }
            // NFT_SET_ELEM_INTERVAL_END, NFT_SET_ELEM_CATCHALL; a key that ends a range of several fields.
            let flags = find(element, 3).and_then(u32_of).unwrap_or(0);
            if flags & 2 != 0 || find(element, 10).is_some() {
                return None;
            }
            found.push(Element {
                key: find(find(element, 1)?, 1)?.to_vec(),
                is_end: flags & 1 != 0,
                action: find(element, 2).and_then(verdict),
            });
        }
    }
    Some(found)
}

/// Elements as ranges, ends included. Those of a set without ranges are ranges of one.
fn ranges(elements: &[Element]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut sorted: Vec<(&[u8], bool)> = elements
        .iter()
        .map(|element| (element.key.as_slice(), element.is_end))
        .collect();
    // An end and a beginning may be at one key: the end comes first.
    sorted.sort_by(|a, b| a.0.cmp(b.0).then(b.1.cmp(&a.1)));
    let is_interval = sorted.iter().any(|(_, is_end)| *is_end);
    let mut ranges = Vec::new();
    for (at, (key, is_end)) in sorted.iter().enumerate() {
        if *is_end {
            continue;
        }
        let last = match sorted.get(at + 1) {
            Some((next, true)) if is_interval => before(next),
            None if is_interval => vec![u8::MAX; key.len()],
            _ => key.to_vec(),
        };
        ranges.push((key.to_vec(), last));
    }
    ranges
}

/// The number before this one.
fn before(key: &[u8]) -> Vec<u8> {
    let mut less = key.to_vec();
    for octet in less.iter_mut().rev() {
        let (value, borrowed) = octet.overflowing_sub(1);
        *octet = value;
        if !borrowed {
            break;
        }
    }
    less
}

/// What a register holds.
#[derive(Clone)]
struct Loaded {
    field: Field,
    /// Empty for all ones.
    mask: Vec<u8>,
    /// Octets.
    length: usize,
}

type Registers = BTreeMap<u32, Loaded>;

/// The rule; or, of one that asks a map of verdicts, one for each of its elements.
fn read_rule(attributes: &[u8], sets: &Sets) -> Vec<Rule> {
    let mut rule = Rule {
        handle: find(attributes, 3).and_then(u64_of).unwrap_or(0),
        matches: Vec::new(),
        packets: None,
        action: Action::Continue,
    };
    let mut registers = Registers::new();
    let mut mapped = Vec::new();
    for (name, of) in expressions(attributes) {
        match name.as_str() {
            "payload" | "meta" | "ct" | "bitwise" => load(&name, of, &mut registers),
            "cmp" => rule.matches.push(compare(of, &registers)),
            "range" => rule.matches.push(range(of, &registers)),
            "lookup" => match lookup(of, &registers, sets) {
                Lookup::Match(found) => rule.matches.push(found),
                Lookup::Verdicts(field, verdicts) => {
                    mapped.extend(verdicts.into_iter().map(|(value, action)| {
                        let mut one = rule.clone();
                        one.matches.push(Match::Compare {
                            field,
                            mask: Vec::new(),
                            is: Relation::Equal,
                            value,
                        });
                        one.action = action;
                        one
                    }));
                }
                Lookup::Unknown => rule.action = Action::Unknown,
            },
            "counter" => rule.packets = find(of, 2).and_then(u64_of),
            "immediate" => {
                if let Some(action) = find(of, 2).and_then(verdict) {
                    rule.action = action;
                }
                registers.remove(&find(of, 1).and_then(u32_of).unwrap_or(0));
            }
            "reject" => rule.action = Action::Reject,
            "match" => {
                let revision = find(of, 2).and_then(u32_of).unwrap_or(0);
                rule.matches.extend(xtables::matches(
                    &find(of, 1).map(text).unwrap_or_default(),
                    u8::try_from(revision).unwrap_or(u8::MAX),
                    find(of, 3).unwrap_or_default(),
                ));
            }
            "target" => rule.action = xtables::target(&find(of, 1).map(text).unwrap_or_default()),
            "log" | "notrack" | "objref" | "dynset" | "dup" | "last" => {}
            "queue" | "tproxy" | "fwd" | "synproxy" => rule.action = Action::Unknown,
            // What it asks is not known, and what it loads neither.
            _ => {
                rule.matches.push(Match::Unknown);
                registers.clear();
            }
        }
    }
    mapped.push(rule);
    mapped
}

/// NFTA_*_DREG is 1 of all but bitwise.
fn load(name: &str, of: &[u8], registers: &mut Registers) {
    let number = |at: u16| find(of, at).and_then(u32_of);
    let place = |at: u16| number(at).and_then(|place| usize::try_from(place).ok());
    if name == "bitwise" {
        let mask = find(of, 4).and_then(|mask| find(mask, 1)).map(<[u8]>::to_vec);
        let flips = find(of, 5)
            .and_then(|value| find(value, 1))
            .is_some_and(|value| value.iter().any(|octet| *octet != 0));
        // NFT_BITWISE_BOOL; NFT_BITWISE_LSHIFT and others are not known.
        let is_mask = number(6).unwrap_or(0) == 0 && !flips;
        let loaded = number(1).and_then(|source| registers.get(&source).cloned());
        let Some(to) = number(2) else { return };
        match (loaded, mask) {
            (Some(loaded), Some(mask)) if is_mask && loaded.mask.is_empty() => {
                registers.insert(to, Loaded { mask, ..loaded });
            }
            _ => drop(registers.remove(&to)),
        }
        return;
    }
    let field = match (name, number(2)) {
        // NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER.
        ("payload", Some(1)) => place(3).map(Field::Network).zip(place(4)),
        ("payload", Some(2)) => place(3).map(Field::Transport).zip(place(4)),
        // NFT_META_IIFNAME, OIFNAME, NFPROTO, L4PROTO.
        ("meta", Some(6)) => Some((Field::Input, 16)),
        ("meta", Some(7)) => Some((Field::Output, 16)),
        ("meta", Some(15)) => Some((Field::Family, 1)),
        ("meta", Some(16)) => Some((Field::Protocol, 1)),
        // NFT_CT_STATE.
        ("ct", Some(0)) => Some((Field::Connection, 4)),
        _ => None,
    };
    let Some(to) = number(1) else { return };
    match field {
        Some((field, length)) => {
            let mask = Vec::new();
            registers.insert(to, Loaded { field, mask, length });
        }
        None => drop(registers.remove(&to)),
    }
}

fn compare(of: &[u8], registers: &Registers) -> Match {
    let read = || {
        let Loaded { field, mask, length } = registers.get(&find(of, 1).and_then(u32_of)?)?.clone();
        let is = match find(of, 2).and_then(u32_of)? {
            0 => Relation::Equal,
            1 => Relation::Different,
            2 => Relation::Less,
            3 => Relation::LessOrEqual,
            4 => Relation::Greater,
            5 => Relation::GreaterOrEqual,
            _ => return None,
        };
        let value = find(find(of, 3)?, 1)?.to_vec();
        // What is compared at once with what another expression loaded behind it is not known.
        (value.len() <= length).then_some(Match::Compare {
            field,
            mask,
            is,
            value,
        })
    };
    read().unwrap_or(Match::Unknown)
}

/// Within two values, ends included, or outside of them.
fn range(of: &[u8], registers: &Registers) -> Match {
    let read = || {
        let loaded = registers.get(&find(of, 1).and_then(u32_of)?)?;
        let value = |at: u16| find(find(of, at)?, 1).map(<[u8]>::to_vec);
        let (first, last) = (value(3)?, value(4)?);
        let is_plain = loaded.mask.is_empty() && first.len() == loaded.length && last.len() == loaded.length;
        is_plain.then_some(Match::Among {
            field: loaded.field,
            ranges: vec![(first, last)],
            // NFT_RANGE_NEQ.
            negated: find(of, 2).and_then(u32_of) == Some(1),
        })
    };
    read().unwrap_or(Match::Unknown)
}

enum Lookup {
    Match(Match),
    Verdicts(Field, Vec<(Vec<u8>, Action)>),
    Unknown,
}

fn lookup(of: &[u8], registers: &Registers, sets: &Sets) -> Lookup {
    let loaded = find(of, 2).and_then(u32_of).and_then(|from| registers.get(&from));
    let set = find(of, 1).map(text).unwrap_or_default();
    let elements = sets.get(&set).and_then(Option::as_ref);
    let maps = find(of, 3).and_then(u32_of);
    let known = loaded
        .filter(|loaded| loaded.mask.is_empty())
        .zip(elements)
        // A key of several fields is longer.
        .filter(|(loaded, elements)| elements.iter().all(|element| element.key.len() == loaded.length));
    match (known, maps) {
        (Some((loaded, elements)), None) => Lookup::Match(Match::Among {
            field: loaded.field,
            ranges: ranges(elements),
            // NFT_LOOKUP_F_INV.
            negated: find(of, 5).and_then(u32_of).unwrap_or(0) & 1 != 0,
        }),
        // NFT_REG_VERDICT.
        (Some((loaded, elements)), Some(0)) if !elements.iter().any(|element| element.is_end) => {
            let verdicts = elements
                .iter()
                .filter_map(|element| Some((element.key.clone(), element.action.clone()?)));
            Lookup::Verdicts(loaded.field, verdicts.collect())
        }
        (_, Some(0)) => Lookup::Unknown,
        _ => Lookup::Match(Match::Unknown),
    }
}

/// The verdict in a value, if it is one.
fn verdict(value: &[u8]) -> Option<Action> {
    let verdict = find(value, 2)?;
    let chain = || find(verdict, 2).map(text);
    // linux/netfilter.h, linux/netfilter/nf_tables.h: NF_*, NFT_*.
    Some(match u32_of(find(verdict, 1)?)?.cast_signed() {
        0 => Action::Drop,
        1 => Action::Accept,
        -1 => Action::Continue,
        -3 => Action::Jump(chain()?),
        -4 => Action::Goto(chain()?),
        -5 => Action::Return,
        _ => Action::Unknown,
    })
}
