//! The table `ip culvert` as it is in the kernel, for people: whoever wrote what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::message::{find, text};
use super::table::{self, Chain, Element, REFUSED, TABLE};
use super::{Kind, Nftables, ask, is_ours};
use crate::dataplane::DataplaneError;
use crate::ruleset::Hook;

/// So many elements of a set are told.
const MOST_ELEMENTS: usize = 4096;

const PURPOSE: &str = "read the nftables table ip culvert";

/// What the table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableView {
    /// Whether there is such a table at all.
    pub is_there: bool,
    /// The chains: where each hangs.
    pub chains: Vec<String>,
    /// The rules in their order, each with its chain, by their comments; and the packets that were counted there.
    pub rules: Vec<String>,
    /// The elements of the sets: addresses, ranges, or refused sources with their packets.
    pub sets: BTreeMap<String, Vec<String>>,
}

impl Nftables {
    /// What the table holds.
    ///
    /// # Errors
    /// When the kernel refuses, or has no nf_tables for IPv4.
    pub async fn view(&mut self) -> Result<TableView, DataplaneError> {
        let named = || table::named(TABLE);
        if self.get(&ask(Kind::GetTable, named(), PURPOSE)).await?.is_none() {
            return Ok(TableView::default());
        }
        let of_ours = |parts: Option<Vec<Vec<u8>>>| {
            let parts = parts.unwrap_or_default().into_iter();
            parts.filter(|part| is_ours(part)).collect::<Vec<Vec<u8>>>()
        };
        let chains = of_ours(self.dump(&ask(Kind::GetChain, named(), PURPOSE)).await?);
        let rules = of_ours(self.dump(&ask(Kind::GetRule, named(), PURPOSE)).await?);
        let mut sets = BTreeMap::new();
        for (name, is_of_ranges) in table::sets() {
            let of = named().with_text(2, name);
            let parts = self.dump(&ask(Kind::GetElements, of, PURPOSE)).await?;
            let parts = parts.unwrap_or_default();
            let found = parts.iter().flat_map(|part| table::read_elements(part));
            let elements: Vec<String> = if name == REFUSED {
                let refused: BTreeMap<Ipv4Addr, u64> = found.filter_map(table::read_refused).collect();
                let told = refused.into_iter();
                told.map(|(source, packets)| format!("{source}: {packets} packets"))
                    .collect()
            } else if is_of_ranges {
                ranges(&found.map(|(element, _)| element).collect())
            } else {
                let keys: BTreeSet<u32> = found.map(|((key, _), _)| key).collect();
                keys.into_iter()
                    .map(|key| Ipv4Addr::from(key).to_string())
                    .collect()
            };
            sets.insert(name.to_owned(), first(elements));
        }
        Ok(TableView {
            is_there: true,
            chains: chains.iter().map(|chain| described(chain)).collect(),
            rules: rules.iter().map(|rule| rule_line(rule)).collect(),
            sets,
        })
    }
}

fn described(attributes: &[u8]) -> String {
    let name = find(attributes, 3).map(text).unwrap_or_default();
    match Chain::read(attributes) {
        None => format!("{name}: called by rules alone"),
        Some((hook, priority, kind, policy)) => {
            let hook =
                Hook::of(hook).map_or_else(|| hook.to_string(), |hook| format!("{hook:?}").to_lowercase());
            // NF_ACCEPT.
            let policy = if policy == 1 { "accept" } else { "drop" };
            format!("{name}: type {kind} hook {hook} priority {priority}, policy {policy}")
        }
    }
}

fn rule_line(attributes: &[u8]) -> String {
    let Some((chain, comment, packets)) = table::read_rule(attributes) else {
        return "(a rule that cannot be read)".to_owned();
    };
    let comment = if comment.is_empty() {
        "(no comment: not Culvert's)"
    } else {
        &comment
    };
    match packets {
        Some(packets) => format!("{chain}: {comment}: {packets} packets"),
        None => format!("{chain}: {comment}"),
    }
}

/// Each range by its first and last address.
fn ranges(elements: &BTreeSet<Element>) -> Vec<String> {
    let mut told = Vec::new();
    let mut begin: Option<u32> = None;
    for (key, is_end) in elements {
        match (begin, is_end) {
            (Some(first), true) => {
                let last = Ipv4Addr::from(key.saturating_sub(1));
                told.push(format!("{}-{last}", Ipv4Addr::from(first)));
                begin = None;
            }
            // The kernel tells of an end before all ranges that do not begin at the first address.
            (None, true) => {}
            (_, false) => begin = Some(*key),
        }
    }
    told.extend(begin.map(|first| format!("{}-{}", Ipv4Addr::from(first), Ipv4Addr::BROADCAST)));
    told
}

fn first(mut elements: Vec<String>) -> Vec<String> {
    let more = elements.len().saturating_sub(MOST_ELEMENTS);
    if more > 0 {
        elements.truncate(MOST_ELEMENTS);
        elements.push(format!("and {more} more"));
    }
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_told_by_their_first_and_last_address() {
        let key = |text: &str| u32::from(text.parse::<Ipv4Addr>().unwrap());
        let elements = [
            (0, true),
            (key("10.65.0.0"), false),
            (key("10.66.0.0"), true),
            (key("255.255.0.0"), false),
        ];
        assert_eq!(
            ranges(&elements.into()),
            ["10.65.0.0-10.65.255.255", "255.255.0.0-255.255.255.255"]
        );
    }

    #[test]
    fn of_many_elements_the_first_are_told_and_the_others_counted() {
        let many = (0..MOST_ELEMENTS + 3).map(|n| n.to_string());
        let told = first(many.collect());
        assert_eq!(told.len(), MOST_ELEMENTS + 1);
        assert_eq!(told.last().unwrap(), "and 3 more");
    }
}
