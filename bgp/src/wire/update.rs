//! UPDATE (RFC 4271 §4.3), read with the verdicts of RFC 7606.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Negotiated;
use super::attribute;
use super::fault::{Fault, FaultReason, Faults, Verdict};
use super::message::{Announcement, Family, Nlri, Notification, PathAttributes, Update};
use super::multiprotocol::{Known, Reach};
use super::nlri::{self, Form};
use super::octets::Octets;
use super::path::{self, Gathered};
use super::repeat::{Parts, Repeated};

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

/// Decodes the body of an UPDATE. `repeated` is what the attributes of the one before were decoded to, and becomes what
/// those of this one were.
///
/// # Errors
/// The NOTIFICATION for a fault that ends the session.
pub(super) fn decode(
    body: &[u8],
    negotiated: Negotiated,
    repeated: &mut Option<Repeated>,
) -> Result<(Update, Vec<Fault>), Notification> {
    let fields = fields(body)?;
    // RFC 7606 §3 i, j: the fields of prefixes must parse, else nobody knows what the message speaks of.
    let broken = |reason: FaultReason| reason.notification(0, &[]);
    let form = Form::of(Family::IPV4_UNICAST, negotiated.ipv4_unicast.add_path.receive);
    let withdrawn = nlri::decode(fields.withdrawn, form).map_err(broken)?;
    let announced = nlri::decode(fields.announced, form).map_err(broken)?;
    let parts = Parts::of(fields.attributes);
    let before = parts
        .as_ref()
        .zip(repeated.as_ref())
        .filter(|(parts, before)| before.is(parts));
    let mut gathered = match before {
        Some((parts, before)) => Gathered::again(before, parts, negotiated)?,
        None => Gathered::walk(fields.attributes, negotiated)?,
    };
    if withdrawn.is_empty()
        && announced.is_empty()
        && let Some(family) = end_of_rib(&fields, &gathered)
    {
        let update = Update {
            end_of_rib: Some(family),
            ..Update::default()
        };
        return Ok((update, gathered.faults.into_vec()));
    }
    // RFC 7606 §5.2: a fault that costs routes, and no route it could cost, so that the message may have been misread.
    let announces = !announced.is_empty() || gathered.reach.as_ref().is_some_and(|reach| !reach.is_empty);
    match gathered.first.take() {
        Some(notification) if !announces => return Err(notification),
        _ => {}
    }
    let is_new = before.is_none();
    let update = join(withdrawn, announced, &mut gathered, negotiated);
    if is_new
        && gathered.faults.is_empty()
        && let (Some(parts), Some(attributes)) = (&parts, &update.attributes)
    {
        *repeated = Repeated::new(parts, attributes, gathered.next_hop);
    }
    Ok((update, gathered.faults.into_vec()))
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
    mut withdrawn: Vec<Nlri>,
    announced: Vec<Nlri>,
    gathered: &mut Gathered,
    negotiated: Negotiated,
) -> Update {
    let mut announced = negotiated_field(announced, gathered, negotiated);
    withdrawn = negotiated_field(withdrawn, gathered, negotiated);
    if let Some(known) = negotiated_part(gathered, attribute::MP_UNREACH_NLRI) {
        append(&mut withdrawn, known.nlri);
    }
    let (mut reached, reach_next_hop) = match negotiated_part(gathered, attribute::MP_REACH_NLRI) {
        Some(known) => (known.nlri, known.next_hop),
        None => (Vec::new(), None),
    };
    if !reached.is_empty() {
        if let Some(Err(reason)) = reach_next_hop.map(path::host) {
            gathered
                .faults
                .push(attribute::MP_REACH_NLRI, Verdict::TreatAsWithdraw, reason);
        }
        if announced.is_empty() {
            // RFC 4760 §3: NEXT_HOP speaks of the NLRI field alone, and is ignored where there is none.
            gathered.faults.forgive(attribute::NEXT_HOP);
        }
    }
    keep_unicast(&mut announced, &mut gathered.faults);
    keep_unicast(&mut reached, &mut gathered.faults);
    if !(announced.is_empty() && reached.is_empty()) {
        gathered.note_missing(negotiated, !announced.is_empty());
    }
    if gathered.faults.verdict() >= Verdict::TreatAsWithdraw {
        // RFC 7606 §2: treat as withdraw.
        append(&mut withdrawn, announced);
        append(&mut withdrawn, reached);
        return Update {
            withdrawn,
            ..Update::default()
        };
    }
    let mut update = announcements(announced, reached, reach_next_hop, gathered);
    supersede(&mut withdrawn, &update);
    update.withdrawn = withdrawn;
    update
}

/// What is announced in the NLRI field and in MP_REACH_NLRI, with the next hop of each.
fn announcements(
    mut announced: Vec<Nlri>,
    reached: Vec<Nlri>,
    reach_next_hop: Option<IpAddr>,
    gathered: &mut Gathered,
) -> Update {
    let next_hop = gathered.next_hop.map(IpAddr::V4);
    let mut update = Update::default();
    if announced.is_empty() {
        if !reached.is_empty() {
            update.attributes = reach_next_hop.and_then(|next_hop| gathered.attributes(next_hop));
            update.announced = reached;
        }
        return update;
    }
    update.attributes = next_hop.and_then(|next_hop| gathered.attributes(next_hop));
    if reach_next_hop == next_hop {
        append(&mut announced, reached);
    } else if let (Some(attributes), Some(next_hop), false) =
        (&update.attributes, reach_next_hop, reached.is_empty())
    {
        // RFC 7606 §5.1: to be read, though not to be sent.
        let attributes = Arc::new(PathAttributes {
            next_hop,
            ..PathAttributes::clone(attributes)
        });
        let nlri = reached;
        update.beside = Some(Box::new(Announcement { nlri, attributes }));
    }
    update.announced = announced;
    update
}

/// Puts one list behind the other, with no more memory than both need.
fn append(list: &mut Vec<Nlri>, mut more: Vec<Nlri>) {
    if list.is_empty() {
        *list = more;
    } else {
        list.reserve_exact(more.len());
        list.append(&mut more);
    }
}

/// The field's routes, if IPv4 unicast was agreed on; else notes that it was not.
fn negotiated_field(nlri: Vec<Nlri>, gathered: &mut Gathered, negotiated: Negotiated) -> Vec<Nlri> {
    if negotiated.ipv4_unicast.agreed || nlri.is_empty() {
        return nlri;
    }
    // RFC 4760 §8: nothing was agreed about it, so that nothing follows from it.
    let reason = FaultReason::FamilyNotNegotiated(Family::IPV4_UNICAST);
    gathered.faults.push(0, Verdict::Accept, reason);
    Vec::new()
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
        let reason = FaultReason::FamilyNotNegotiated(family);
        gathered.faults.push(code, Verdict::DiscardAttribute, reason);
    }
    known
}

/// RFC 4271 §6.3: a prefix that is wrong in its meaning, such as a group, is ignored.
fn keep_unicast(announced: &mut Vec<Nlri>, faults: &mut Faults) {
    announced.retain(|nlri| {
        let is_group = match nlri.prefix.net() {
            IpNet::V4(net) => net.addr().is_multicast(),
            IpNet::V6(net) => net.addr().is_multicast(),
        };
        if is_group {
            faults.push(0, Verdict::Accept, FaultReason::NotUnicast(nlri.prefix));
        }
        !is_group
    });
}

/// RFC 4271 §4.3: what is both withdrawn and announced counts as announced.
fn supersede(withdrawn: &mut Vec<Nlri>, update: &Update) {
    if withdrawn.is_empty() {
        return;
    }
    let mut announced: Vec<&Nlri> = update.announcements().flat_map(|(nlri, _)| nlri).collect();
    if announced.is_empty() {
        return;
    }
    announced.sort_unstable();
    withdrawn.retain(|nlri| announced.binary_search(&nlri).is_err());
}
