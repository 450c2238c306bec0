//! What the matches and targets of iptables say, as far as it is known here: the older ip_tables keep them in their table,
//! newer iptables inside rules of nf_tables (linux/netfilter/x_tables.h).

use crate::ruleset::{Action, Field, Match, Relation};

/// The conditions of a match: none for one that only remarks, [`Match::Unknown`] for one that is not known.
pub(super) fn matches(name: &str, revision: u8, of: &[u8]) -> Vec<Match> {
    let known = match (name, revision) {
        ("comment", _) => Some(Vec::new()),
        ("tcp", 0) => tcp(of),
        ("udp", 0) => ports(of).filter(|_| of.get(8) == Some(&0)),
        ("state", 0) => of.first_chunk().map(|mask| vec![connection(*mask, false)]),
        ("conntrack", 3) => conntrack(of),
        _ => None,
    };
    known.unwrap_or_else(|| vec![Match::Unknown])
}

/// What a target does that is not one of the standard ones.
pub(super) fn target(name: &str) -> Action {
    match name {
        "REJECT" => Action::Reject,
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "CT" | "TRACE" | "TCPMSS" | "DSCP" | "TOS" | "TTL"
        | "SET" => Action::Continue,
        "DROP" => Action::Drop,
        "ACCEPT" => Action::Accept,
        "RETURN" => Action::Return,
        _ => Action::Unknown,
    }
}

/// `struct xt_tcp`: two pairs of ports, an option, flags with their mask, what is inverted.
fn tcp(of: &[u8]) -> Option<Vec<Match>> {
    let [option, mask, flags, inverted] = *of.get(8..12)?.first_chunk()?;
    if option != 0 || inverted != 0 {
        return None;
    }
    let mut all = ports(of)?;
    if mask != 0 {
        all.push(Match::Compare {
            field: Field::Transport(13),
            mask: vec![mask],
            is: Relation::Equal,
            value: vec![flags],
        });
    }
    Some(all)
}

/// The least and the greatest port of the source, and of the destination, in the order of the host.
fn ports(of: &[u8]) -> Option<Vec<Match>> {
    let number = |at: usize| Some(u16::from_ne_bytes(*of.get(at..)?.first_chunk()?));
    let mut all = Vec::new();
    for (place, offset) in [(0, 0), (4, 2)] {
        let (least, greatest) = (number(place)?, number(place + 2)?);
        if (least, greatest) != (0, u16::MAX) {
            all.push(Match::Among {
                field: Field::Transport(offset),
                ranges: vec![(least.to_be_bytes().to_vec(), greatest.to_be_bytes().to_vec())],
                negated: false,
            });
        }
    }
    Some(all)
}

/// `struct xt_conntrack_mtinfo3`, where only the state is asked for (`XT_CONNTRACK_STATE`).
fn conntrack(of: &[u8]) -> Option<Vec<Match>> {
    const STATE: u16 = 1;
    let number = |at: usize| Some(u16::from_ne_bytes(*of.get(at..)?.first_chunk()?));
    let (asked, inverted, mask) = (number(146)?, number(148)?, number(150)?);
    (asked == STATE).then(|| {
        let mask = u32::from(mask).to_ne_bytes();
        vec![connection(mask, inverted & STATE != 0)]
    })
}

/// The state of the connection has one of these bits, or none of them.
fn connection(mask: [u8; 4], negated: bool) -> Match {
    Match::Compare {
        field: Field::Connection,
        mask: mask.to_vec(),
        is: if negated {
            Relation::Equal
        } else {
            Relation::Different
        },
        value: vec![0; 4],
    }
}
