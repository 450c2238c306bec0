//! UPDATE (RFC 4271 §4.3), read with the verdicts of RFC 7606.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Negotiated;
use super::attribute;
use super::fault::{Fault, FaultReason, Faults, Verdict};
use super::message::{Announcement, Family, Nlri, Notification, PathAttributes, Update};
use super::multiprotocol::{Known, Reach};
use super::nlri::{self, Field, Form};
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
    let withdrawn = Field::check(fields.withdrawn, form).map_err(broken)?;
    let announced = Field::check(fields.announced, form).map_err(broken)?;
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
fn end_of_rib(fields: &Fields<'_>, gathered: &Gathered<'_>) -> Option<Family> {
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
    withdrawn: Field<'_>,
    announced: Field<'_>,
    gathered: &mut Gathered<'_>,
    negotiated: Negotiated,
) -> Update {
    let announced = negotiated_field(announced, gathered, negotiated);
    let withdrawn = negotiated_field(withdrawn, gathered, negotiated);
    let unreach = negotiated_part(gathered, attribute::MP_UNREACH_NLRI);
    let unreached = unreach.map_or(Field::EMPTY, |known| known.field);
    let reach = negotiated_part(gathered, attribute::MP_REACH_NLRI);
    let reach = reach.filter(|known| !known.field.is_empty());
    let reached = reach.map_or(Field::EMPTY, |known| known.field);
    let reach_next_hop = reach.and_then(|known| known.next_hop);
    if let Some(Err(reason)) = reach_next_hop.map(path::host) {
        gathered
            .faults
            .push(attribute::MP_REACH_NLRI, Verdict::TreatAsWithdraw, reason);
    }
    if announced.is_empty() && !reached.is_empty() {
        // RFC 4760 §3: NEXT_HOP speaks of the NLRI field alone, and is ignored where there is none.
        gathered.faults.forgive(attribute::NEXT_HOP);
    }
    if !(announced.is_empty() && reached.is_empty()) {
        gathered.note_missing(negotiated, !announced.is_empty());
    }
    if gathered.faults.verdict() >= Verdict::TreatAsWithdraw {
        // RFC 7606 §2: treat as withdraw.
        return Update {
            withdrawn: nlri::list([withdrawn, unreached, announced, reached]),
            ..Update::default()
        };
    }
    let mut update = announcements(announced, reached, reach_next_hop, gathered);
    update.withdrawn = nlri::list([withdrawn, unreached]);
    supersede(&mut update);
    update
}

/// What is announced in the NLRI field and in MP_REACH_NLRI, with the next hop of each.
fn announcements(
    announced: Field<'_>,
    reached: Field<'_>,
    reach_next_hop: Option<IpAddr>,
    gathered: &mut Gathered<'_>,
) -> Update {
    let mut update = Update::default();
    let own_next_hop = gathered
        .next_hop
        .map(IpAddr::V4)
        .filter(|_| !announced.is_empty());
    let Some(next_hop) = own_next_hop.or(reach_next_hop) else {
        return update;
    };
    let is_one = reach_next_hop.is_none_or(|other| other == next_hop);
    let fields = [announced, if is_one { reached } else { Field::EMPTY }];
    update.announced = keep_unicast(nlri::list(fields), &mut gathered.faults);
    let attributes = gathered.attributes(next_hop);
    if !is_one && let (Some(attributes), Some(next_hop)) = (&attributes, reach_next_hop) {
        // RFC 7606 §5.1: to be read, though not to be sent.
        let attributes = Arc::new(PathAttributes {
            next_hop,
            ..PathAttributes::clone(attributes)
        });
        let nlri = keep_unicast(nlri::list([reached]), &mut gathered.faults);
        let beside = Announcement { nlri, attributes };
        update.beside = (!beside.nlri.is_empty()).then(|| Box::new(beside));
    }
    update.attributes = attributes.filter(|_| !update.announced.is_empty());
    update
}

/// The field's routes, if IPv4 unicast was agreed on; else notes that it was not.
fn negotiated_field<'a>(field: Field<'a>, gathered: &mut Gathered<'_>, negotiated: Negotiated) -> Field<'a> {
    if negotiated.ipv4_unicast.agreed || field.is_empty() {
        return field;
    }
    // RFC 4760 §8: nothing was agreed about it, so that nothing follows from it.
    let reason = FaultReason::FamilyNotNegotiated(Family::IPV4_UNICAST);
    gathered.faults.push(0, Verdict::Accept, reason);
    Field::EMPTY
}

/// Takes MP_REACH_NLRI or MP_UNREACH_NLRI out, if its family was negotiated; else notes that it was not.
fn negotiated_part<'a>(gathered: &mut Gathered<'a>, code: u8) -> Option<Known<'a>> {
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
fn keep_unicast(mut announced: Vec<Nlri>, faults: &mut Faults) -> Vec<Nlri> {
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
    announced
}

/// RFC 4271 §4.3: what is both withdrawn and announced counts as announced.
fn supersede(update: &mut Update) {
    if update.withdrawn.is_empty() {
        return;
    }
    let mut withdrawn = std::mem::take(&mut update.withdrawn);
    let mut announced: Vec<&Nlri> = update.announcements().flat_map(|(nlri, _)| nlri).collect();
    announced.sort_unstable();
    withdrawn.retain(|nlri| announced.binary_search(&nlri).is_err());
    update.withdrawn = withdrawn;
}
