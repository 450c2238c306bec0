//! Messages written out, and routes packed into as few of them as hold them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Negotiated;
use super::as_path::{self, Width};
use super::attribute::{self, OPTIONAL, PARTIAL, TRANSITIVE};
use super::frame::{HEADER_LENGTH, MAX_LENGTH, enclose, kind};
use super::message::{Family, Message, Nlri, Notification, Origin, PathAttributes, RefreshKind, Update};
use super::multiprotocol;
use super::nlri;
use super::open;
use crate::id::Asn;

/// Octets for the fields of an UPDATE: what is left besides the header and the two lengths (RFC 4271 §4.3).
const ROOM: usize = MAX_LENGTH - HEADER_LENGTH - 4;
/// The preference of a route that names none, where the session asks for one (RFC 4271 §5.1.5 leaves it open).
const DEFAULT_LOCAL_PREF: u32 = 100;

/// Writes a message.
///
/// An UPDATE that one message of [`MAX_LENGTH`] octets does not hold becomes several, one after the other, that mean
/// the same. Announcements without attributes are no announcements and are left out.
#[must_use]
pub fn encode(message: &Message, negotiated: Negotiated) -> Vec<u8> {
    match message {
        Message::Open(open) => open::encode(open),
        Message::Update(update) => encode_update(update, negotiated),
        Message::Notification(notification) => encode_notification(notification),
        Message::Keepalive => enclose(kind::KEEPALIVE, &[]),
        Message::RouteRefresh { family, kind } => {
            let [high, low] = family.afi.to_be_bytes();
            let subtype = match kind {
                RefreshKind::Request => 0,
                RefreshKind::BeginOfRr => 1,
                RefreshKind::EndOfRr => 2,
                RefreshKind::Unknown(subtype) => *subtype,
            };
            enclose(kind::ROUTE_REFRESH, &[high, low, subtype, family.safi])
        }
    }
}

/// RFC 4271 §4.5; data that the message has no room for is cut off.
fn encode_notification(notification: &Notification) -> Vec<u8> {
    let mut body = vec![notification.code, notification.subcode];
    body.extend(notification.data.iter().take(MAX_LENGTH - HEADER_LENGTH - 2));
    enclose(kind::NOTIFICATION, &body)
}

fn encode_update(update: &Update, negotiated: Negotiated) -> Vec<u8> {
    let announced: &[Nlri] = if update.attributes.is_some() {
        &update.announced
    } else {
        &[]
    };
    let attributes = match &update.attributes {
        Some(attributes) if !announced.is_empty() => encode_attributes(attributes, negotiated),
        _ => Vec::new(),
    };
    let withdrawn_field = field(&update.withdrawn);
    let announced_field = field(announced);
    let mut octets = Vec::new();
    if withdrawn_field.len() + attributes.len() + announced_field.len() > ROOM {
        octets.extend(encode_withdrawals(&update.withdrawn, negotiated).concat());
        octets.extend(pack_announcements(&attributes, announced, negotiated).concat());
    } else if !(withdrawn_field.is_empty() && announced_field.is_empty()) {
        octets.extend(enclose_update(&withdrawn_field, &attributes, &announced_field));
    }
    // An UPDATE of nothing is a marker by itself (RFC 4724 §2).
    match update.end_of_rib {
        Some(family) => octets.extend(encode_end_of_rib(family)),
        None if octets.is_empty() => octets.extend(encode_end_of_rib(Family::IPV4_UNICAST)),
        None => {}
    }
    octets
}

/// Withdraws `prefixes` in as few messages as hold them. Prefixes of a family other than IPv4 are left out, since the
/// fields of RFC 4271 §4.3 have no place for them.
#[must_use]
pub fn encode_withdrawals(prefixes: &[Nlri], _negotiated: Negotiated) -> Vec<Vec<u8>> {
    pack(prefixes, ROOM)
        .iter()
        .map(|field| enclose_update(field, &[], &[]))
        .collect()
}

/// Announces `prefixes`, all with the same attributes, in as few messages as hold them. Prefixes of a family other than
/// IPv4 are left out.
///
/// Attributes so large that no message holds them and a prefix cannot be announced: the prefixes are withdrawn instead,
/// so that the peer does not stay with an older path.
#[must_use]
pub fn encode_announcements(
    attributes: &PathAttributes,
    prefixes: &[Nlri],
    negotiated: Negotiated,
) -> Vec<Vec<u8>> {
    pack_announcements(&encode_attributes(attributes, negotiated), prefixes, negotiated)
}

/// The End-of-RIB marker of `family` (RFC 4724 §2).
#[must_use]
pub fn encode_end_of_rib(family: Family) -> Vec<u8> {
    let mut attributes = Vec::new();
    if family != Family::IPV4_UNICAST {
        let value = multiprotocol::encode_end_of_rib(family);
        attribute::push(&mut attributes, OPTIONAL, attribute::MP_UNREACH_NLRI, &value);
    }
    enclose_update(&[], &attributes, &[])
}

fn pack_announcements(attributes: &[u8], prefixes: &[Nlri], negotiated: Negotiated) -> Vec<Vec<u8>> {
    let longest = prefixes
        .iter()
        .map(|nlri| nlri::length(nlri.prefix))
        .max()
        .unwrap_or(0);
    match ROOM.checked_sub(attributes.len()).filter(|room| *room >= longest) {
        Some(room) => pack(prefixes, room)
            .iter()
            .map(|field| enclose_update(&[], attributes, field))
            .collect(),
        None => encode_withdrawals(prefixes, negotiated),
    }
}

/// Fields of at most `room` octets each, which is at least what the longest prefix takes.
fn pack(prefixes: &[Nlri], room: usize) -> Vec<Vec<u8>> {
    let mut full = Vec::new();
    let mut field = Vec::new();
    for prefix in prefixes
        .iter()
        .map(|nlri| nlri.prefix)
        .filter(|prefix| prefix.is_ipv4())
    {
        if field.len() + nlri::length(prefix) > room {
            full.push(std::mem::take(&mut field));
        }
        nlri::push(&mut field, prefix);
    }
    if !field.is_empty() {
        full.push(field);
    }
    full
}

fn field(prefixes: &[Nlri]) -> Vec<u8> {
    let mut field = Vec::new();
    for prefix in prefixes
        .iter()
        .map(|nlri| nlri.prefix)
        .filter(|prefix| prefix.is_ipv4())
    {
        nlri::push(&mut field, prefix);
    }
    field
}

/// The fields, which the caller keeps within [`ROOM`].
fn enclose_update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(4 + withdrawn.len() + attributes.len() + announced.len());
    for field in [withdrawn, attributes] {
        body.extend_from_slice(&u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes());
        body.extend_from_slice(field);
    }
    body.extend_from_slice(announced);
    enclose(kind::UPDATE, &body)
}

/// The attribute area, in ascending order of type codes (RFC 4271 §5), each code once.
fn encode_attributes(attributes: &PathAttributes, negotiated: Negotiated) -> Vec<u8> {
    let mut list: Vec<(u8, u8, Vec<u8>)> = Vec::new();
    let origin = match attributes.origin {
        Origin::Igp => 0,
        Origin::Egp => 1,
        Origin::Incomplete => 2,
    };
    list.push((attribute::ORIGIN, TRANSITIVE, vec![origin]));
    if let IpAddr::V4(next_hop) = attributes.next_hop {
        list.push((attribute::NEXT_HOP, TRANSITIVE, next_hop.octets().to_vec()));
    }
    if let Some(med) = attributes.med {
        list.push((attribute::MULTI_EXIT_DISC, OPTIONAL, med.to_be_bytes().to_vec()));
    }
    // RFC 4271 §5.1.5: always to internal peers, never to external ones.
    if negotiated.internal {
        let preference = attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF);
        list.push((
            attribute::LOCAL_PREF,
            TRANSITIVE,
            preference.to_be_bytes().to_vec(),
        ));
    }
    if attributes.atomic_aggregate {
        list.push((attribute::ATOMIC_AGGREGATE, TRANSITIVE, Vec::new()));
    }
    let communities: BTreeSet<u32> = attributes.communities.iter().copied().collect();
    if !communities.is_empty() {
        let value = communities.into_iter().flat_map(u32::to_be_bytes).collect();
        list.push((attribute::COMMUNITIES, OPTIONAL | TRANSITIVE, value));
    }
    // RFC 8092 §4: none is sent twice.
    let large: BTreeSet<[u32; 3]> = attributes.large_communities.iter().copied().collect();
    if !large.is_empty() {
        let value = large.into_iter().flatten().flat_map(u32::to_be_bytes).collect();
        list.push((attribute::LARGE_COMMUNITIES, OPTIONAL | TRANSITIVE, value));
    }
    let extended: BTreeSet<[u8; 8]> = attributes.extended_communities.iter().copied().collect();
    if !extended.is_empty() {
        let value = extended.into_iter().flatten().collect();
        list.push((attribute::EXTENDED_COMMUNITIES, OPTIONAL | TRANSITIVE, value));
    }
    push_autonomous_systems(&mut list, attributes, negotiated);
    let passed_on = |(code, value): &(u8, Vec<u8>)| {
        // RFC 4271 §5: Partial says that somebody on the way did not know the attribute.
        let partial = if attribute::defined_flags(*code).is_none() {
            PARTIAL
        } else {
            0
        };
        (*code, OPTIONAL | TRANSITIVE | partial, value.clone())
    };
    list.extend(attributes.unknown.iter().map(passed_on));
    list.sort_by_key(|(code, ..)| *code);
    list.dedup_by_key(|(code, ..)| *code);
    let mut area = Vec::new();
    for (code, flags, value) in &list {
        attribute::push(&mut area, *flags, *code, value);
    }
    area
}

/// AS_PATH and AGGREGATOR, and to a peer of two octets what they cannot hold (RFC 6793 §4.2.2).
fn push_autonomous_systems(
    list: &mut Vec<(u8, u8, Vec<u8>)>,
    attributes: &PathAttributes,
    negotiated: Negotiated,
) {
    const SHARED: u8 = OPTIONAL | TRANSITIVE;
    let width = if negotiated.four_octet_as {
        Width::Four
    } else {
        Width::Two
    };
    let path = &attributes.as_path;
    list.push((attribute::AS_PATH, TRANSITIVE, as_path::encode(path, width)));
    if width == Width::Two && as_path::needs_four(path) {
        list.push((attribute::AS4_PATH, SHARED, as_path::encode_as4(path)));
    }
    let Some((asn, address)) = attributes.aggregator else {
        return;
    };
    let value = |width: Width, asn: Asn| {
        let mut value = Vec::new();
        width.push(asn, &mut value);
        value.extend_from_slice(&address.octets());
        value
    };
    list.push((attribute::AGGREGATOR, SHARED, value(width, asn)));
    if width == Width::Two && asn.get() > u32::from(u16::MAX) {
        list.push((attribute::AS4_AGGREGATOR, SHARED, value(Width::Four, asn)));
    }
}
