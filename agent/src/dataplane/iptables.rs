//! The rules of the older ip_tables (`iptables-legacy`), which nf_tables knows nothing of: read, and never written.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::{fs, io};

use socket2::{Domain, Protocol, Socket, Type};

use super::xtables;
use crate::ruleset::{Action, Base, Chain, Field, Hook, Match, Program, Relation, Rule};
use crate::uapi::{self, TableInfo};

/// The tables that there are; asking for another would load it.
const NAMES: &str = "/proc/thread-self/net/ip_tables_names";

/// The tables whose rules may drop.
const TABLES: [&str; 3] = ["raw", "mangle", "filter"];

/// `struct ipt_entry` (linux/netfilter_ipv4/ip_tables.h) before its matches.
const ENTRY: usize = 112;

/// `struct xt_entry_match` and `struct xt_entry_target` before what they hold.
const EXTENSION: usize = 32;

/// The chains of ip_tables in the network namespace of the calling thread. Where nobody uses it there are none.
///
/// # Errors
/// When the kernel refuses: it takes CAP_NET_ADMIN and CAP_NET_RAW.
pub fn iptables() -> io::Result<Vec<Chain>> {
    let names = match fs::read_to_string(NAMES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names?,
    };
    let mut chains = Vec::new();
    for table in TABLES {
        if !names.lines().any(|name| name == table) {
            continue;
        }
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        let (info, entries) = uapi::iptables_table(&socket, table)?;
        chains.extend(read(table, &info, &entries));
    }
    Ok(chains)
}

/// An entry: where it is, its conditions, its packets, and its target.
struct Entry<'a> {
    offset: usize,
    next: usize,
    matches: Vec<Match>,
    packets: u64,
    /// A chain that it calls does not come back (`IPT_F_GOTO`).
    goes: bool,
    target: &'a str,
    /// What the target holds.
    holds: &'a [u8],
}

/// The chains in the entries of a table. What is not whole ends them.
fn read(table: &str, info: &TableInfo, entries: &[u8]) -> Vec<Chain> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(entry) = entry(entries, at) {
        at = entry.next;
        all.push(entry);
    }
    // A chain that is not called by a hook begins behind an entry with its name.
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    let mut bases: BTreeMap<usize, (Hook, usize)> = BTreeMap::new();
    for (number, (begin, policy)) in (0_u32..).zip(info.entries.iter().zip(&info.policies)) {
        let place = |offset: &u32| usize::try_from(*offset).ok();
        if let Some(hook) = Hook::of(number).filter(|_| info.hooks & (1 << number) != 0)
            && let (Some(begin), Some(policy)) = (place(begin), place(policy))
        {
            names.insert(begin, format!("{hook:?}").to_uppercase());
            bases.insert(begin, (hook, policy));
        }
    }
    for entry in all.iter().filter(|entry| entry.target == "ERROR") {
        names.insert(entry.next, text(entry.holds).to_owned());
    }
    let mut chains: Vec<Chain> = Vec::new();
    for entry in &all {
        if let Some(name) = names.get(&entry.offset).filter(|_| entry.target != "ERROR") {
            chains.push(Chain {
                program: Program::Iptables,
                family: "ip",
                table: table.to_owned(),
                name: name.clone(),
                base: bases.get(&entry.offset).map(|(hook, _)| Base {
                    hook: *hook,
                    priority: priority(table),
                    drops: false,
                    packets: None,
                }),
                rules: Vec::new(),
            });
        }
        let Some(chain) = chains.last_mut().filter(|_| entry.target != "ERROR") else {
            continue;
        };
        let action = action(entry, &names);
        let is_policy = bases.values().any(|(_, policy)| *policy == entry.offset);
        match chain.base.as_mut().filter(|_| is_policy) {
            Some(base) => {
                base.drops = action == Action::Drop;
                base.packets = Some(entry.packets);
            }
            None => chain.rules.push(Rule {
                handle: u64::try_from(chain.rules.len())
                    .unwrap_or(u64::MAX)
                    .saturating_add(1),
                matches: entry.matches.clone(),
                packets: Some(entry.packets),
                action,
            }),
        }
    }
    chains
}

/// `NF_IP_PRI_*` (linux/netfilter_ipv4.h).
fn priority(table: &str) -> i32 {
    match table {
        "raw" => -300,
        "mangle" => -150,
        _ => 0,
    }
}

fn entry(entries: &[u8], offset: usize) -> Option<Entry<'_>> {
    let head = entries.get(offset..)?;
    let head = head.get(..ENTRY)?;
    let short = |at: usize| Some(usize::from(u16::from_ne_bytes(*head.get(at..)?.first_chunk()?)));
    let (target_at, next_at) = (short(88)?, short(90)?);
    let whole = entries.get(offset..offset.checked_add(next_at)?)?;
    let target = whole.get(target_at..)?;
    if target_at < ENTRY || target.len() < EXTENSION {
        return None;
    }
    let mut matches = header(head)?;
    let mut at = ENTRY;
    while at < target_at {
        let one = whole.get(at..target_at)?;
        let size = usize::from(u16::from_ne_bytes(*one.first_chunk()?));
        let of = one.get(EXTENSION..size)?;
        matches.extend(xtables::matches(text(one.get(2..31)?), *one.get(31)?, of));
        at = at.checked_add(size)?;
    }
    Some(Entry {
        offset,
        next: offset + next_at,
        matches,
        packets: u64::from_ne_bytes(*head.get(96..)?.first_chunk()?),
        goes: head.get(82)? & 0x02 != 0,
        target: text(target.get(2..31)?),
        holds: target.get(EXTENSION..)?,
    })
}

/// The conditions in `struct ipt_ip`.
fn header(entry: &[u8]) -> Option<Vec<Match>> {
    let inverted = *entry.get(83)?;
    // IPT_INV_SRCIP, DSTIP, VIA_IN, VIA_OUT, PROTO, FRAG; IPT_F_FRAG.
    let relation = |bit: u8| {
        if inverted & bit == 0 {
            Relation::Equal
        } else {
            Relation::Different
        }
    };
    let mut all = Vec::new();
    for (place, field, bit) in [(0, 12, 0x08), (4, 16, 0x10)] {
        let part = |at: usize| Some(entry.get(at..at + 4)?.to_vec());
        let (value, mask) = (part(place)?, part(place + 8)?);
        if mask != Ipv4Addr::UNSPECIFIED.octets() {
            all.push(Match::Compare {
                field: Field::Network(field),
                mask,
                is: relation(bit),
                value,
            });
        }
    }
    for (place, field, bit) in [(16, Field::Input, 0x01), (32, Field::Output, 0x02)] {
        let name = entry.get(place..place + 16)?;
        let mask = entry.get(place + 32..place + 48)?;
        if mask.iter().any(|octet| *octet != 0) {
            all.push(Match::Compare {
                field,
                mask: mask.to_vec(),
                is: relation(bit),
                value: name.to_vec(),
            });
        }
    }
    let protocol = u16::from_ne_bytes(*entry.get(80..)?.first_chunk()?);
    if let Some(protocol) = u8::try_from(protocol).ok().filter(|protocol| *protocol != 0) {
        all.push(Match::Compare {
            field: Field::Protocol,
            mask: Vec::new(),
            is: relation(0x40),
            value: vec![protocol],
        });
    }
    if *entry.get(82)? & 0x01 != 0 {
        all.push(Match::Unknown);
    }
    Some(all)
}

fn action(entry: &Entry<'_>, names: &BTreeMap<usize, String>) -> Action {
    if !entry.target.is_empty() {
        return xtables::target(entry.target);
    }
    let Some(verdict) = entry
        .holds
        .first_chunk()
        .map(|octets| i32::from_ne_bytes(*octets))
    else {
        return Action::Unknown;
    };
    // linux/netfilter/x_tables.h: -NF_DROP - 1, -NF_ACCEPT - 1, XT_RETURN, else where to go on.
    match verdict {
        -1 => Action::Drop,
        -2 => Action::Accept,
        -5 => Action::Return,
        _ => {
            let to = usize::try_from(verdict).ok();
            // A rule without a target goes on with the next.
            if to == Some(entry.next) {
                return Action::Continue;
            }
            let name = to.and_then(|to| names.get(&to));
            let calls = if entry.goes { Action::Goto } else { Action::Jump };
            name.map_or(Action::Unknown, |name| calls(name.clone()))
        }
    }
}

/// Text that ends in a zero byte.
fn text(octets: &[u8]) -> &str {
    let text = octets.split(|octet| *octet == 0).next().unwrap_or_default();
    std::str::from_utf8(text).unwrap_or_default()
}
