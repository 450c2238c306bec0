//! UPDATE (RFC 4271 §4.3), read with the verdicts of RFC 7606.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::Negotiated;
use super::attribute;
use super::fault::{Fault, FaultReason, Verdict};
use super::message::{Family, Nlri, Notification, Update};
use super::multiprotocol::{Known, Reach};
use super::nlri;
use super::octets::Octets;
use super::path::{self, Gathered};
use crate::id::Prefix;

/// The three fields of the message, delimited.
struct Fields<'a> {
    withdrawn: &'a [u8],
    attributes: &'a [u8],
    announced: &'a [u8],
}

fn fields(body: &[u8]) -> Result<Fields<'_>, Notification> {
    let overrun = |wanted, left| FaultReason::FieldOverrun { wanted, left }.notification(0, &[]);
    let mut body = Octets::new(body);
    let mut field = || {
        let start = body;
        // RFC 4271 §6.3, RFC 7606 §3 a: a field that ends after the message is a malformed attribute list.
        body.field16().ok_or_else(|| overrun(2, start.len()))
    };
    let withdrawn = field()?;
    let attributes = field()?;
    Ok(Fields {
        withdrawn,
        attributes,
        announced: body.rest(),
    })
}

/// Decodes the body of an UPDATE.
///
/// # Errors
/// The NOTIFICATION for a fault that ends the session.
pub(super) fn decode(body: &[u8], negotiated: Negotiated) -> Result<(Update, Vec<Fault>), Notification> {
    let fields = fields(body)?;
    // RFC 7606 §3 i, j: the fields of prefixes must parse, else nobody knows what the message speaks of.
    let broken = |reason: FaultReason| reason.notification(0, &[]);
    let withdrawn = nlri::decode_ipv4(fields.withdrawn).map_err(broken)?;
    let announced = nlri::decode_ipv4(fields.announced).map_err(broken)?;
    let mut gathered = Gathered::walk(fields.attributes, negotiated)?;
    if withdrawn.is_empty()
        && announced.is_empty()
        && let Some(family) = end_of_rib(&fields, &gathered)
    {
        let update = Update {
            end_of_rib: Some(family),
            ..Update::default()
        };
        return Ok((update, gathered.faults));
    }
    // RFC 7606 §5.2: a fault that costs routes, and no route it could cost, so that the message may have been misread.
    let announces = !announced.is_empty() || gathered.reach.as_ref().is_some_and(|reach| !reach.is_empty);
    match gathered.first.take() {
        Some(notification) if !announces => return Err(notification),
        _ => {}
    }
    Ok(join(withdrawn, announced, gathered, negotiated))
}

/// RFC 4724 §2: nothing at all is the marker of IPv4 unicast; an MP_UNREACH_NLRI alone and without prefixes is that of
/// its family.
fn end_of_rib(fields: &Fields<'_>, gathered: &Gathered) -> Option<Family> {
    if fields.attributes.is_empty() {
        return Some(Family::IPV4_UNICAST);
    }
    match &gathered.unreach {
        Some(unreach) if unreach.is_empty && gathered.is_unreach_only() && gathered.faults.is_empty() => {
            Some(unreach.family)
        }
        _ => None,
    }
}

/// Puts the fields and the attributes together.
fn join(
    mut withdrawn: Vec<Prefix>,
    announced: Vec<Prefix>,
    mut gathered: Gathered,
    negotiated: Negotiated,
) -> (Update, Vec<Fault>) {
    let unreach = negotiated_part(&mut gathered, attribute::MP_UNREACH_NLRI);
    withdrawn.extend(unreach.into_iter().flat_map(|known| known.prefixes));
    let reach = negotiated_part(&mut gathered, attribute::MP_REACH_NLRI);
    let (announced, next_hop) = announcements(announced, reach, &mut gathered, &mut withdrawn);
    let announced = unicast_only(announced, &mut gathered.faults);
    if !announced.is_empty() {
        for attribute in gathered.missing(negotiated, next_hop) {
            let (verdict, reason) = (Verdict::TreatAsWithdraw, FaultReason::Missing);
            gathered.faults.push(Fault {
                attribute,
                verdict,
                reason,
            });
        }
    }
    let attributes = match next_hop {
        Some(next_hop) if !announced.is_empty() && gathered.verdict() < Verdict::TreatAsWithdraw => {
            gathered.attributes(next_hop)
        }
        _ => None,
    };
    let mut update = Update {
        withdrawn: withdrawn.into_iter().map(Nlri::from).collect(),
        ..Update::default()
    };
    let announced: Vec<_> = announced.into_iter().map(Nlri::from).collect();
    match attributes {
        Some(attributes) => {
            update.attributes = Some(Arc::new(attributes));
            supersede(&mut update.withdrawn, &announced);
            update.announced = announced;
        }
        // RFC 7606 §2: treat as withdraw.
        None => update.withdrawn.extend(announced),
    }
    (update, gathered.faults)
}

/// Takes MP_REACH_NLRI or MP_UNREACH_NLRI out, if its family was negotiated; else notes that it was not.
fn negotiated_part(gathered: &mut Gathered, code: u8) -> Option<Known> {
    let part = if code == attribute::MP_REACH_NLRI {
        &mut gathered.reach
    } else {
        &mut gathered.unreach
    };
    let Reach {
        family,
        known,
        is_empty,
    } = part.take()?;
    if known.is_none() && !is_empty {
        // RFC 4760 §8: nothing was agreed about it, so that nothing follows from it.
        let (verdict, reason) = (
            Verdict::DiscardAttribute,
            FaultReason::FamilyNotNegotiated(family),
        );
        gathered.faults.push(Fault {
            attribute: code,
            verdict,
            reason,
        });
    }
    known
}

/// All that is announced, from both places, with the next hop of it (RFC 4760 §3: NEXT_HOP does not count for
/// MP_REACH_NLRI).
fn announcements(
    mut announced: Vec<Prefix>,
    reach: Option<Known>,
    gathered: &mut Gathered,
    withdrawn: &mut Vec<Prefix>,
) -> (Vec<Prefix>, Option<Ipv4Addr>) {
    let next_hop = gathered.next_hop;
    let Some(Known {
        next_hop: Some(IpAddr::V4(other)),
        prefixes,
    }) = reach.filter(|known| !known.prefixes.is_empty())
    else {
        return (announced, next_hop);
    };
    let mut refuse = |verdict, reason| {
        gathered.faults.push(Fault {
            attribute: attribute::MP_REACH_NLRI,
            verdict,
            reason,
        });
    };
    if let Err(reason) = path::host(other) {
        refuse(Verdict::TreatAsWithdraw, reason);
    }
    if announced.is_empty() {
        return (prefixes, Some(other));
    }
    if next_hop == Some(other) {
        announced.extend(prefixes);
    } else {
        // One UPDATE carries one set of attributes here. Two next hops for one family is what no speaker sends.
        refuse(Verdict::Accept, FaultReason::OtherNextHop(IpAddr::V4(other)));
        withdrawn.extend(prefixes);
    }
    (announced, next_hop)
}

/// RFC 4271 §6.3: a prefix that is wrong in its meaning, such as a group, is ignored.
fn unicast_only(mut announced: Vec<Prefix>, faults: &mut Vec<Fault>) -> Vec<Prefix> {
    announced.retain(|prefix| {
        let is_group = match prefix.net() {
            IpNet::V4(net) => net.addr().is_multicast(),
            IpNet::V6(net) => net.addr().is_multicast(),
        };
        if is_group {
            let (verdict, reason) = (Verdict::Accept, FaultReason::NotUnicast(*prefix));
            faults.push(Fault {
                attribute: 0,
                verdict,
                reason,
            });
        }
        !is_group
    });
    announced
}

/// RFC 4271 §4.3: a prefix that is both withdrawn and announced counts as announced.
fn supersede(withdrawn: &mut Vec<Nlri>, announced: &[Nlri]) {
    if withdrawn.is_empty() {
        return;
    }
    let announced: BTreeSet<_> = announced.iter().copied().collect();
    withdrawn.retain(|prefix| !announced.contains(prefix));
}
