//! Messages written out, and path attributes with them; [`super::packing`] makes UPDATEs of routes.

use std::net::IpAddr;

use super::Negotiated;
use super::as_path::{self, Width};
use super::attribute::{self, OPTIONAL, PARTIAL, TRANSITIVE};
use super::frame::{self, HEADER_LENGTH, enclose, kind};
use super::message::{Message, Notification, Origin, PathAttributes, RefreshKind};
use super::open;
use super::packing;
use crate::id::Asn;

/// The preference of a route that names none, where the session asks for one (RFC 4271 §5.1.5 leaves it open).
const DEFAULT_LOCAL_PREF: u32 = 100;
/// The bit of an extended community's first octet that keeps it within the AS (RFC 4360 §2: T).
const NON_TRANSITIVE: u8 = 0x40;

/// Writes a message.
///
/// An UPDATE that one message does not hold, or that has to be said in several, becomes several, one after the other,
/// that mean the same. Announcements without attributes are no announcements and are left out, and so are routes of a
/// family that was not agreed on.
#[must_use]
pub fn encode(message: &Message, negotiated: Negotiated) -> Vec<u8> {
    match message {
        Message::Open(open) => open::encode(open),
        Message::Update(update) => packing::encode_update(update, negotiated),
        Message::Notification(notification) => encode_notification(notification, negotiated),
        Message::Keepalive => enclose(kind::KEEPALIVE, &[]),
        Message::RouteRefresh { family, kind } => {
            let [high, low] = family.afi.to_be_bytes();
            // RFC 7313 §3.2.
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
fn encode_notification(notification: &Notification, negotiated: Negotiated) -> Vec<u8> {
    let mut body = vec![notification.code, notification.subcode];
    let room = frame::limit_to_send(negotiated) - HEADER_LENGTH - body.len();
    body.extend(notification.data.iter().take(room));
    enclose(kind::NOTIFICATION, &body)
}

/// The attribute area, in ascending order of type codes (RFC 4271 §5), each code once. NEXT_HOP is written where the
/// next hop is of IPv4 and `with_next_hop` asks for it (RFC 4760 §3: not beside MP_REACH_NLRI).
pub(super) fn encode_attributes(
    attributes: &PathAttributes,
    negotiated: Negotiated,
    with_next_hop: bool,
) -> Vec<u8> {
    let mut area = Area::new(attributes);
    area.put(TRANSITIVE, attribute::ORIGIN, |value| {
        value.push(match attributes.origin {
            Origin::Igp => 0,
            Origin::Egp => 1,
            Origin::Incomplete => 2,
        });
    });
    let width = Width::of(negotiated);
    area.put(TRANSITIVE, attribute::AS_PATH, |value| {
        as_path::encode(&attributes.as_path, width, value);
    });
    if with_next_hop && let IpAddr::V4(next_hop) = attributes.next_hop {
        area.put(TRANSITIVE, attribute::NEXT_HOP, |value| {
            value.extend_from_slice(&next_hop.octets());
        });
    }
    if let Some(med) = attributes.med {
        area.put(OPTIONAL, attribute::MULTI_EXIT_DISC, |value| {
            value.extend_from_slice(&med.to_be_bytes());
        });
    }
    // RFC 4271 §5.1.5: always to internal peers, never to external ones.
    if negotiated.internal {
        let preference = attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF);
        area.put(TRANSITIVE, attribute::LOCAL_PREF, |value| {
            value.extend_from_slice(&preference.to_be_bytes());
        });
    }
    if attributes.atomic_aggregate {
        area.put(TRANSITIVE, attribute::ATOMIC_AGGREGATE, |_| {});
    }
    if let Some((asn, address)) = attributes.aggregator {
        area.put_shared(attribute::AGGREGATOR, |value| {
            width.push(asn, value);
            value.extend_from_slice(&address.octets());
        });
    }
    area.put_list(
        attribute::COMMUNITIES,
        &attributes.communities,
        |community, value| {
            value.extend_from_slice(&community.to_be_bytes());
        },
    );
    if negotiated.internal {
        area.put_reflection();
    }
    area.put_extended_communities(negotiated);
    if width == Width::Two {
        area.put_four_octets();
    }
    // RFC 8092 §4: none is sent twice.
    area.put_list(
        attribute::LARGE_COMMUNITIES,
        &attributes.large_communities,
        |community, value| value.extend(community.iter().flat_map(|part| part.to_be_bytes())),
    );
    area.finish()
}

/// An attribute area that grows by one attribute after the other, with what is unknown here between them.
struct Area<'a> {
    attributes: &'a PathAttributes,
    octets: Vec<u8>,
    /// What is to be passed on, by type code, the next one last.
    unknown: Vec<&'a (u8, Vec<u8>)>,
}

impl<'a> Area<'a> {
    fn new(attributes: &'a PathAttributes) -> Self {
        let mut unknown: Vec<_> = attributes
            .unknown
            .iter()
            // One that has a field of its own is written from there.
            .filter(|(code, _)| attribute::defined_flags(*code).is_none())
            .collect();
        unknown.sort_by_key(|(code, _)| *code);
        unknown.dedup_by_key(|(code, _)| *code);
        unknown.reverse();
        Self {
            attributes,
            octets: Vec::with_capacity(64),
            unknown,
        }
    }

    fn put(&mut self, flags: u8, code: u8, write: impl FnOnce(&mut Vec<u8>)) {
        self.pass_on_below(u16::from(code));
        attribute::push(&mut self.octets, flags, code, write);
    }

    /// Optional and transitive, with the Partial bit that it came with (RFC 4271 §5: once set, it stays).
    fn put_shared(&mut self, code: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let partial = if self.attributes.partial.contains(code) {
            PARTIAL
        } else {
            0
        };
        self.put(OPTIONAL | TRANSITIVE | partial, code, write);
    }

    /// A set of elements, ascending and each once; nothing where there are none.
    fn put_list<T: Ord + Copy>(&mut self, code: u8, list: &[T], write: impl Fn(T, &mut Vec<u8>)) {
        if list.is_empty() {
            return;
        }
        self.put_shared(code, |value| {
            if list.is_sorted_by(|one, next| one < next) {
                list.iter().for_each(|element| write(*element, value));
            } else {
                let mut list = list.to_vec();
                list.sort_unstable();
                list.dedup();
                list.iter().for_each(|element| write(*element, value));
            }
        });
    }

    /// RFC 4456 §8: what keeps reflected routes from going in circles; it does not leave the AS.
    fn put_reflection(&mut self) {
        if let Some(originator) = self.attributes.originator_id {
            self.put(OPTIONAL, attribute::ORIGINATOR_ID, |value| {
                value.extend_from_slice(&originator.address().octets());
            });
        }
        let clusters = &self.attributes.cluster_list;
        if !clusters.is_empty() {
            self.put(OPTIONAL, attribute::CLUSTER_LIST, |value| {
                value.extend(clusters.iter().flat_map(std::net::Ipv4Addr::octets));
            });
        }
    }

    /// RFC 4360 §6: those that are not transitive do not leave the AS.
    fn put_extended_communities(&mut self, negotiated: Negotiated) {
        let all = &self.attributes.extended_communities;
        let stays = |[kind, ..]: &[u8; 8]| kind & NON_TRANSITIVE != 0;
        if negotiated.internal || !all.iter().any(stays) {
            self.put_list(attribute::EXTENDED_COMMUNITIES, all, push_octets);
        } else {
            let some: Vec<_> = all.iter().copied().filter(|one| !stays(one)).collect();
            self.put_list(attribute::EXTENDED_COMMUNITIES, &some, push_octets);
        }
    }

    /// What AS_PATH and AGGREGATOR of two octets cannot hold (RFC 6793 §4.2.2).
    fn put_four_octets(&mut self) {
        let path = &self.attributes.as_path;
        if as_path::needs_four(path) {
            self.put(OPTIONAL | TRANSITIVE, attribute::AS4_PATH, |value| {
                as_path::encode_as4(path, value);
            });
        }
        let too_large = |(asn, _): &(Asn, _)| asn.get() > u32::from(u16::MAX);
        if let Some((asn, address)) = self.attributes.aggregator.filter(too_large) {
            self.put(OPTIONAL | TRANSITIVE, attribute::AS4_AGGREGATOR, |value| {
                Width::Four.push(asn, value);
                value.extend_from_slice(&address.octets());
            });
        }
    }

    /// RFC 4271 §5: Partial says that somebody on the way did not know the attribute.
    fn pass_on_below(&mut self, limit: u16) {
        while let Some((code, value)) = self.unknown.pop_if(|(code, _)| u16::from(*code) < limit) {
            attribute::push(&mut self.octets, OPTIONAL | TRANSITIVE | PARTIAL, *code, |area| {
                area.extend_from_slice(value);
            });
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.pass_on_below(u16::MAX);
        self.octets
    }
}

fn push_octets(octets: [u8; 8], value: &mut Vec<u8>) {
    value.extend_from_slice(&octets);
}
