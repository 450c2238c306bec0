//! OPEN (RFC 4271 §4.2) and its capabilities (RFC 5492).

use std::net::Ipv4Addr;

use super::frame::{HEADER_LENGTH, MAX_LENGTH, enclose, kind};
use super::message::{Capability, Directions, Family, GracefulRestart, LongLivedFamily, Notification, Open};
use super::notification::{UNSPECIFIC, code, open};
use super::octets::Octets;
use super::zetta;
use crate::id::{Asn, HoldTime, RouterId};

/// The only version there is (RFC 4271 §4.2).
const VERSION: u8 = 4;

/// Optional parameter types (RFC 5492 §4, RFC 9072 §2).
mod parameter {
    pub(super) const CAPABILITIES: u8 = 2;
    pub(super) const EXTENDED_LENGTH: u8 = 255;
}

/// Capability codes.
mod capability {
    pub(super) const MULTI_PROTOCOL: u8 = 1;
    pub(super) const ROUTE_REFRESH: u8 = 2;
    pub(super) const EXTENDED_NEXT_HOP: u8 = 5;
    pub(super) const EXTENDED_MESSAGE: u8 = 6;
    pub(super) const GRACEFUL_RESTART: u8 = 64;
    pub(super) const FOUR_OCTET_AS: u8 = 65;
    pub(super) const ADD_PATH: u8 = 69;
    pub(super) const ENHANCED_ROUTE_REFRESH: u8 = 70;
    pub(super) const LONG_LIVED_GRACEFUL_RESTART: u8 = 71;
}

fn refuse(subcode: u8) -> Notification {
    Notification::new(code::OPEN_MESSAGE, subcode)
}

/// RFC 4271 §6.2: what is recognized but malformed has the subcode that says nothing more.
fn malformed() -> Notification {
    refuse(UNSPECIFIC)
}

/// Decodes the body of an OPEN.
///
/// # Errors
/// The NOTIFICATION that RFC 4271 §6.2 asks for.
pub(super) fn decode(body: &[u8]) -> Result<Open, Notification> {
    let mut body = Octets::new(body);
    let version = body.u8().ok_or_else(malformed)?;
    if version != VERSION {
        // RFC 4271 §6.2: the data is the version that we could speak, in two octets.
        let data = u16::from(VERSION).to_be_bytes().to_vec();
        return Err(Notification::with_data(
            code::OPEN_MESSAGE,
            open::UNSUPPORTED_VERSION_NUMBER,
            data,
        ));
    }
    let my_as = body.u16().ok_or_else(malformed)?;
    let hold_time = body.u16().ok_or_else(malformed)?;
    let router_id = body.u32().ok_or_else(malformed)?;
    // RFC 7607 §2: AS 0 is a bad peer AS.
    let my_as = Asn::new(u32::from(my_as)).ok_or_else(|| refuse(open::BAD_PEER_AS))?;
    // RFC 4271 §6.2: one and two seconds must be refused.
    let hold_time = HoldTime::new(hold_time).ok_or_else(|| refuse(open::UNACCEPTABLE_HOLD_TIME))?;
    // RFC 6286 §2.2: zero is the only value that is wrong in itself.
    let router_id =
        RouterId::new(Ipv4Addr::from(router_id)).ok_or_else(|| refuse(open::BAD_BGP_IDENTIFIER))?;
    let capabilities = parameters(body)?;
    let asn = four_octet_as(&capabilities)?.unwrap_or(my_as);
    Ok(Open {
        asn,
        hold_time,
        router_id,
        capabilities,
    })
}

/// RFC 6793 §4.1: the AS number of the capability takes the place of My Autonomous System.
fn four_octet_as(capabilities: &[Capability]) -> Result<Option<Asn>, Notification> {
    let mut found = None;
    for capability in capabilities {
        if let Capability::FourOctetAs(asn) = capability {
            match found {
                Some(before) if before != *asn => return Err(refuse(open::BAD_PEER_AS)),
                _ => found = Some(*asn),
            }
        }
    }
    Ok(found)
}

/// The capabilities of all the optional parameters.
fn parameters(mut body: Octets<'_>) -> Result<Vec<Capability>, Notification> {
    let length = body.u8().ok_or_else(malformed)?;
    // RFC 9072 §2: the type 255 in the first place, not the length, tells the extended form.
    let extended = length != 0 && body.peek() == Some(parameter::EXTENDED_LENGTH);
    let length = if extended {
        let _type = body.u8();
        body.u16().map(usize::from).ok_or_else(malformed)?
    } else {
        usize::from(length)
    };
    // RFC 4271 §4.2: the parameters end where the message ends.
    if length != body.len() {
        return Err(malformed());
    }
    let mut found = Vec::new();
    while let Some(kind) = body.u8() {
        let value = if extended { body.field16() } else { body.field8() };
        let value = value.ok_or_else(malformed)?;
        // RFC 4271 §6.2: a parameter that is not recognized must be refused.
        if kind != parameter::CAPABILITIES {
            return Err(refuse(open::UNSUPPORTED_OPTIONAL_PARAMETER));
        }
        capabilities(value, &mut found)?;
    }
    Ok(found)
}

fn capabilities(value: &[u8], found: &mut Vec<Capability>) -> Result<(), Notification> {
    let mut value = Octets::new(value);
    while let Some(code) = value.u8() {
        let octets = value.field8().ok_or_else(malformed)?;
        found.push(one(code, octets)?);
    }
    Ok(())
}

fn one(code: u8, value: &[u8]) -> Result<Capability, Notification> {
    match (code, value) {
        // RFC 4760 §8: AFI, an octet that is not looked at, SAFI.
        (capability::MULTI_PROTOCOL, [high, low, _, safi]) => Ok(Capability::MultiProtocol(Family {
            afi: u16::from_be_bytes([*high, *low]),
            safi: *safi,
        })),
        // RFC 7607 §2: AS 0 is a bad peer AS here too.
        (capability::FOUR_OCTET_AS, [0, 0, 0, 0]) => Err(refuse(open::BAD_PEER_AS)),
        (capability::ROUTE_REFRESH | capability::GRACEFUL_RESTART | capability::FOUR_OCTET_AS, _) => {
            zetta::capability(code, value).ok_or_else(malformed)
        }
        (capability::MULTI_PROTOCOL, _) => Err(malformed()),
        // RFC 5492 §3: a capability that is not known is no error.
        _ => Ok(optional(code, value).unwrap_or_else(|| Capability::Unknown {
            code,
            value: value.to_vec(),
        })),
    }
}

/// Capabilities without which a session is as good as it was before they were defined: one that makes no sense counts
/// as not understood, instead of costing the session.
fn optional(code: u8, value: &[u8]) -> Option<Capability> {
    match code {
        capability::EXTENDED_MESSAGE => value.is_empty().then_some(Capability::ExtendedMessage),
        capability::EXTENDED_NEXT_HOP => decode_extended_next_hop(value),
        // RFC 7911 §4: any other value than 1, 2 and 3 makes the capability one that is not understood.
        capability::ADD_PATH
            if value
                .chunks_exact(4)
                .any(|family| !matches!(family, [_, _, _, 1..=3])) =>
        {
            None
        }
        capability::ADD_PATH
        | capability::ENHANCED_ROUTE_REFRESH
        | capability::LONG_LIVED_GRACEFUL_RESTART => zetta::capability(code, value),
        _ => None,
    }
}

/// RFC 8950 §4: AFI, SAFI in two octets, AFI of the next hop. SAFIs that no message could name are left out.
fn decode_extended_next_hop(value: &[u8]) -> Option<Capability> {
    let (entries, []) = value.as_chunks::<6>() else {
        return None;
    };
    let families = entries
        .iter()
        .filter_map(|[afi_high, afi_low, safi_high, safi, high, low]| {
            let family = Family {
                afi: u16::from_be_bytes([*afi_high, *afi_low]),
                safi: *safi,
            };
            (*safi_high == 0).then_some((family, u16::from_be_bytes([*high, *low])))
        });
    Some(Capability::ExtendedNextHop(families.collect()))
}

/// An OPEN. Capabilities that the message has no room for (values over 255 octets, or 4096 in all) are left out.
pub(super) fn encode(open: &Open) -> Vec<u8> {
    let mut body = vec![VERSION];
    body.extend_from_slice(&open.asn.two_octets().to_be_bytes());
    body.extend_from_slice(&open.hold_time.seconds().to_be_bytes());
    body.extend_from_slice(&open.router_id.address().octets());
    // The six octets are what RFC 9072 §2 puts before the first capability, besides the length.
    let room = MAX_LENGTH - HEADER_LENGTH - body.len() - 7;
    let mut octets = Vec::new();
    for capability in &open.capabilities {
        let before = octets.len();
        push(&mut octets, capability);
        if octets.len() > room {
            octets.truncate(before);
        }
    }
    match u8::try_from(octets.len()).map(|length| (length, length.checked_add(2))) {
        Ok((0, _)) => body.push(0),
        Ok((length, Some(parameters))) => {
            body.extend_from_slice(&[parameters, parameter::CAPABILITIES, length]);
        }
        _ => extended_length(&mut body, octets.len()),
    }
    body.extend_from_slice(&octets);
    enclose(kind::OPEN, &body)
}

/// RFC 9072 §2: what takes the place of a length of one octet that is too small.
fn extended_length(body: &mut Vec<u8>, capabilities: usize) {
    let length = u16::try_from(capabilities).unwrap_or(u16::MAX);
    body.extend_from_slice(&[u8::MAX, parameter::EXTENDED_LENGTH]);
    body.extend_from_slice(&length.saturating_add(3).to_be_bytes());
    body.push(parameter::CAPABILITIES);
    body.extend_from_slice(&length.to_be_bytes());
}

fn push(octets: &mut Vec<u8>, capability: &Capability) {
    let (code, value) = match capability {
        Capability::MultiProtocol(family) => {
            let [high, low] = family.afi.to_be_bytes();
            (capability::MULTI_PROTOCOL, vec![high, low, 0, family.safi])
        }
        Capability::RouteRefresh => (capability::ROUTE_REFRESH, Vec::new()),
        Capability::FourOctetAs(asn) => (capability::FOUR_OCTET_AS, asn.get().to_be_bytes().to_vec()),
        Capability::GracefulRestart(restart) => (capability::GRACEFUL_RESTART, graceful_restart(restart)),
        Capability::LongLivedGracefulRestart(families) => {
            (capability::LONG_LIVED_GRACEFUL_RESTART, long_lived(families))
        }
        Capability::AddPath(families) => (capability::ADD_PATH, add_path(families)),
        Capability::EnhancedRouteRefresh => (capability::ENHANCED_ROUTE_REFRESH, Vec::new()),
        Capability::ExtendedMessage => (capability::EXTENDED_MESSAGE, Vec::new()),
        Capability::ExtendedNextHop(families) => (capability::EXTENDED_NEXT_HOP, extended_next_hop(families)),
        Capability::Unknown { code, value } => (*code, value.clone()),
    };
    if let Ok(length) = u8::try_from(value.len()) {
        octets.extend_from_slice(&[code, length]);
        octets.extend_from_slice(&value);
    }
}

/// RFC 9494 §3.1: AFI, SAFI, the F bit, and 24 bits of time.
fn long_lived(families: &[LongLivedFamily]) -> Vec<u8> {
    let mut value = Vec::new();
    for kept in families {
        value.extend_from_slice(&kept.family.afi.to_be_bytes());
        value.push(kept.family.safi);
        value.push(if kept.forwarding_kept { 0x80 } else { 0 });
        let [_, time @ ..] = kept.stale_time.min(0x00ff_ffff).to_be_bytes();
        value.extend_from_slice(&time);
    }
    value
}

/// RFC 7911 §4: AFI, SAFI, and 1 to receive, 2 to send, 3 for both. A family in neither direction is left out.
fn add_path(families: &[(Family, Directions)]) -> Vec<u8> {
    let mut value = Vec::new();
    for (family, directions) in families {
        let directions = u8::from(directions.receive) | u8::from(directions.send) << 1;
        if directions != 0 {
            value.extend_from_slice(&family.afi.to_be_bytes());
            value.extend_from_slice(&[family.safi, directions]);
        }
    }
    value
}

/// RFC 8950 §4: AFI, SAFI in two octets, AFI of the next hop.
fn extended_next_hop(families: &[(Family, u16)]) -> Vec<u8> {
    let mut value = Vec::new();
    for (family, next_hop) in families {
        value.extend_from_slice(&family.afi.to_be_bytes());
        value.extend_from_slice(&u16::from(family.safi).to_be_bytes());
        value.extend_from_slice(&next_hop.to_be_bytes());
    }
    value
}

/// RFC 4724 §3: the R bit, RFC 8538 §2: the N bit, and twelve bits of time, then the families with their F bits.
fn graceful_restart(restart: &GracefulRestart) -> Vec<u8> {
    let restarted = if restart.restarted { 0x8000 } else { 0 };
    let flags = restarted | if restart.notification { 0x4000 } else { 0 };
    let mut value = (flags | restart.restart_time.min(0x0fff)).to_be_bytes().to_vec();
    for (family, kept) in &restart.families {
        value.extend_from_slice(&family.afi.to_be_bytes());
        value.push(family.safi);
        value.push(if *kept { 0x80 } else { 0 });
    }
    value
}
