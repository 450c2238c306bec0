//! Routes packed into as few UPDATEs as hold them (RFC 4271 §9.2): many destinations, one set of attributes.
//!
//! Routes of IPv4 with a next hop of IPv4 go into the fields of RFC 4271 §4.3, all others into MP_REACH_NLRI and
//! MP_UNREACH_NLRI, alone in their message but for the attributes and in the first place (RFC 7606 §5.1).

use std::net::{IpAddr, Ipv6Addr};

use super::Negotiated;
use super::encode::encode_attributes;
use super::frame::{self, HEADER_LENGTH, enclose, kind};
use super::message::{Family, Nlri, PathAttributes, Update};
use super::multiprotocol::{self, REACH_OVERHEAD, UNREACH_OVERHEAD};
use super::nlri::Form;

/// The families that have routes.
const FAMILIES: [Family; 2] = [Family::IPV4_UNICAST, Family::IPV6_UNICAST];

/// Octets for the fields of an UPDATE: what is left besides the header and the two lengths (RFC 4271 §4.3).
fn room(negotiated: Negotiated) -> usize {
    frame::limit_to_send(negotiated) - HEADER_LENGTH - 4
}

/// How the destinations of `family` are written to this peer; `None` where it is not to be told of them.
fn form(family: Family, negotiated: Negotiated) -> Option<Form> {
    let terms = negotiated.family(family).filter(|terms| terms.agreed)?;
    Some(Form::of(family, terms.add_path.send))
}

fn of(family: Family, nlri: &[Nlri]) -> impl Iterator<Item = Nlri> + Clone {
    nlri.iter()
        .copied()
        .filter(move |nlri| Family::of(nlri.prefix) == family)
}

/// Withdraws `nlri` in as few messages as hold them. Destinations of a family that was not agreed on are left out.
#[must_use]
pub fn encode_withdrawals(nlri: &[Nlri], negotiated: Negotiated) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for family in FAMILIES {
        withdraw(of(family, nlri), family, negotiated, &mut messages);
    }
    messages
}

fn withdraw(
    nlri: impl Iterator<Item = Nlri>,
    family: Family,
    negotiated: Negotiated,
    messages: &mut Vec<Vec<u8>>,
) {
    let Some(form) = form(family, negotiated) else {
        return;
    };
    if family == Family::IPV4_UNICAST {
        pack(nlri, room(negotiated), form, |field| {
            messages.push(enclose_update(field, &[], &[]));
        });
    } else {
        pack(nlri, room(negotiated) - UNREACH_OVERHEAD, form, |field| {
            let mut area = Vec::with_capacity(UNREACH_OVERHEAD + field.len());
            multiprotocol::push_unreach(&mut area, family, field);
            messages.push(enclose_update(&[], &area, &[]));
        });
    }
}

/// Announces `nlri`, all with the same attributes, in as few messages as hold them. Destinations of a family that was
/// not agreed on are left out.
///
/// What cannot be announced is withdrawn instead, so that the peer does not stay with an older path: where the
/// attributes are so large that no message holds them and a destination, and where the peer does not take such a next
/// hop (of IPv4 for a destination of IPv6; the other way round without RFC 8950).
#[must_use]
pub fn encode_announcements(
    attributes: &PathAttributes,
    nlri: &[Nlri],
    negotiated: Negotiated,
) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for family in FAMILIES {
        if of(family, nlri).next().is_some() {
            announce(attributes, of(family, nlri), family, negotiated, &mut messages);
        }
    }
    messages
}

fn announce(
    attributes: &PathAttributes,
    nlri: impl Iterator<Item = Nlri> + Clone,
    family: Family,
    negotiated: Negotiated,
    messages: &mut Vec<Vec<u8>>,
) {
    let Some(form) = form(family, negotiated) else {
        return;
    };
    let longest = nlri.clone().map(|nlri| form.length(nlri)).max().unwrap_or(0);
    let place = Place::of(family, attributes.next_hop, negotiated);
    let area = encode_attributes(attributes, negotiated, place == Some(Place::Field));
    let overhead = match place {
        Some(Place::Reach(_)) => REACH_OVERHEAD,
        _ => 0,
    };
    let left = room(negotiated)
        .checked_sub(area.len() + overhead)
        .filter(|left| *left >= longest);
    match (place, left) {
        (Some(Place::Field), Some(left)) => pack(nlri, left, form, |field| {
            messages.push(enclose_update(&[], &area, field));
        }),
        (Some(Place::Reach(next_hop)), Some(left)) => pack(nlri, left, form, |field| {
            // RFC 7606 §5.1: the very first attribute.
            let mut all = Vec::with_capacity(REACH_OVERHEAD + field.len() + area.len());
            multiprotocol::push_reach(&mut all, family, next_hop, field);
            all.extend_from_slice(&area);
            messages.push(enclose_update(&[], &all, &[]));
        }),
        _ => withdraw(nlri, family, negotiated, messages),
    }
}

/// Where an announcement is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The field of RFC 4271 §4.3, with NEXT_HOP.
    Field,
    /// MP_REACH_NLRI, with this next hop.
    Reach(Ipv6Addr),
}

impl Place {
    /// `None` where there is none for such a next hop.
    fn of(family: Family, next_hop: IpAddr, negotiated: Negotiated) -> Option<Self> {
        match next_hop {
            IpAddr::V4(_) => (family == Family::IPV4_UNICAST).then_some(Place::Field),
            // RFC 8950 §4: only a peer that said so takes it for IPv4.
            IpAddr::V6(next_hop) => (family == Family::IPV6_UNICAST
                || negotiated.ipv4_unicast.extended_next_hop)
                .then_some(Place::Reach(next_hop)),
        }
    }
}

/// Hands out fields of at most `room` octets each, which is at least what the longest destination takes.
fn pack(nlri: impl Iterator<Item = Nlri>, room: usize, form: Form, mut full: impl FnMut(&[u8])) {
    let mut field = Vec::new();
    for nlri in nlri {
        if field.len() + form.length(nlri) > room {
            full(&field);
            field.clear();
        }
        form.push(&mut field, nlri);
    }
    if !field.is_empty() {
        full(&field);
    }
}

/// An UPDATE as one message, if that is possible, or several.
pub(super) fn encode_update(update: &Update, negotiated: Negotiated) -> Vec<u8> {
    let mut octets = match in_one(update, negotiated) {
        Some(octets) => octets,
        None => {
            let mut octets = encode_withdrawals(&update.withdrawn, negotiated).concat();
            for (nlri, attributes) in update.announcements() {
                octets.extend(encode_announcements(attributes, nlri, negotiated).concat());
            }
            octets
        }
    };
    // An UPDATE of nothing is a marker by itself (RFC 4724 §2). One of which all was left out is none.
    let is_empty = update.withdrawn.is_empty() && update.announced.is_empty() && update.beside.is_none();
    match update.end_of_rib {
        Some(family) => octets.extend(encode_end_of_rib(family)),
        None if is_empty => octets.extend(encode_end_of_rib(Family::IPV4_UNICAST)),
        None => {}
    }
    octets
}

/// RFC 4271 §4.3: withdrawn and announced routes of IPv4 share a message.
fn in_one(update: &Update, negotiated: Negotiated) -> Option<Vec<u8>> {
    let form = form(Family::IPV4_UNICAST, negotiated)?;
    let announcement = match (&update.attributes, &update.beside) {
        (Some(attributes), None) if !update.announced.is_empty() => Some(attributes),
        (_, None) => None,
        (_, Some(_)) => return None,
    };
    let announced = announcement.map_or(&[][..], |_| &update.announced);
    let in_fields = |nlri: &Nlri| nlri.prefix.is_ipv4();
    let fits = update.withdrawn.iter().all(in_fields)
        && announced.iter().all(in_fields)
        && announcement.is_none_or(|attributes| attributes.next_hop.is_ipv4());
    if !fits || (update.withdrawn.is_empty() && announced.is_empty()) {
        return None;
    }
    let length = |list: &[Nlri]| list.iter().map(|nlri| form.length(*nlri)).sum::<usize>();
    let room = room(negotiated);
    if length(&update.withdrawn) + length(announced) > room {
        return None;
    }
    let area = announcement
        .map(|attributes| encode_attributes(attributes, negotiated, true))
        .unwrap_or_default();
    let field = |list: &[Nlri]| {
        let mut field = Vec::with_capacity(length(list));
        list.iter().for_each(|nlri| form.push(&mut field, *nlri));
        field
    };
    let (withdrawn, announced) = (field(&update.withdrawn), field(announced));
    let whole = withdrawn.len() + area.len() + announced.len();
    (whole <= room).then(|| enclose_update(&withdrawn, &area, &announced))
}

/// The End-of-RIB marker of `family` (RFC 4724 §2).
#[must_use]
pub fn encode_end_of_rib(family: Family) -> Vec<u8> {
    let mut area = Vec::new();
    if family != Family::IPV4_UNICAST {
        multiprotocol::push_unreach(&mut area, family, &[]);
    }
    enclose_update(&[], &area, &[])
}

/// The fields, which the caller keeps within [`room`].
fn enclose_update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(4 + withdrawn.len() + attributes.len() + announced.len());
    for field in [withdrawn, attributes] {
        body.extend_from_slice(&u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes());
        body.extend_from_slice(field);
    }
    body.extend_from_slice(announced);
    enclose(kind::UPDATE, &body)
}
