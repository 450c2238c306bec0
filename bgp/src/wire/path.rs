//! The attributes of one UPDATE, gathered one by one with a verdict for each that is wrong (RFC 7606).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::Negotiated;
use super::as_path::{self, Width};
use super::attribute::{self, Attribute, Overrun};
use super::fault::{FaultReason, Faults, Verdict};
use super::message::{AsPath, Notification, Origin, Partial, PathAttributes};
use super::multiprotocol::{self, Reach};
use super::octets::Octets;
use super::repeat::{Parts, Repeated};
use super::zetta;
use crate::id::{Asn, RouterId};

/// Why an attribute is not taken as it is, when not at the usual cost of its kind.
type Refusal = (Verdict, FaultReason);

/// What the attribute area held.
#[derive(Default)]
pub(super) struct Gathered<'a> {
    origin: Option<Origin>,
    as_path: Option<AsPath>,
    pub(super) next_hop: Option<Ipv4Addr>,
    med: Option<u32>,
    local_pref: Option<u32>,
    atomic_aggregate: bool,
    aggregator: Option<(Asn, Ipv4Addr)>,
    communities: Vec<u32>,
    large_communities: Vec<[u32; 3]>,
    extended_communities: Vec<[u8; 8]>,
    originator_id: Option<RouterId>,
    cluster_list: Vec<Ipv4Addr>,
    partial: Partial,
    unknown: Vec<(u8, Vec<u8>)>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<(Asn, Ipv4Addr)>,
    pub(super) reach: Option<Reach<'a>>,
    pub(super) unreach: Option<Reach<'a>>,
    pub(super) faults: Faults,
    /// The NOTIFICATION for the first fault that costs the routes, should there be no routes to take it out on.
    pub(super) first: Option<Notification>,
    seen: Seen,
    /// What the same octets were decoded to before; the fields of single attributes are empty then.
    recalled: Option<Arc<PathAttributes>>,
}

/// Which type codes have occurred.
#[derive(Default)]
struct Seen([u128; 2]);

impl Seen {
    /// Whether this is the first time.
    fn insert(&mut self, code: u8) -> bool {
        let [low, high] = &mut self.0;
        let half = if code < 128 { low } else { high };
        let bit = 1_u128 << (code & 0x7f);
        let first = *half & bit == 0;
        *half |= bit;
        first
    }

    /// How many there are.
    fn count(&self) -> u32 {
        self.0.iter().map(|half| half.count_ones()).sum()
    }
}

impl<'a> Gathered<'a> {
    /// Walks the attribute area.
    ///
    /// # Errors
    /// The NOTIFICATION for a fault that no weaker verdict can answer.
    pub(super) fn walk(area: &'a [u8], negotiated: Negotiated) -> Result<Self, Notification> {
        let mut gathered = Self::default();
        let mut area = Octets::new(area);
        while let Some(next) = attribute::next(&mut area) {
            match next {
                Ok(attribute) => gathered.attribute(&attribute, negotiated)?,
                Err(Overrun { code, reason, raw }) => {
                    gathered.seen.insert(code);
                    // RFC 7606 §4: whatever it is, it costs the routes at least, and the area's length still tells
                    // where the prefixes begin. §3 j: MP_REACH_NLRI cut off hides routes and costs the session.
                    let verdict = attribute::malformed(code).max(Verdict::TreatAsWithdraw);
                    gathered.fault(code, verdict, reason, raw)?;
                }
            }
        }
        gathered.unknown.sort();
        Ok(gathered)
    }

    /// What the attribute area holds of which all but MP_REACH_NLRI and MP_UNREACH_NLRI was decoded before, without a
    /// fault.
    ///
    /// # Errors
    /// As [`Gathered::walk`].
    pub(super) fn again(
        before: &Repeated,
        parts: &Parts<'a>,
        negotiated: Negotiated,
    ) -> Result<Self, Notification> {
        let mut gathered = Self {
            next_hop: before.next_hop,
            recalled: Some(Arc::clone(&before.attributes)),
            ..Self::default()
        };
        for attribute in parts.multiprotocol.iter().flatten() {
            gathered.attribute(attribute, negotiated)?;
        }
        Ok(gathered)
    }

    /// Whether MP_UNREACH_NLRI is the only attribute.
    pub(super) fn is_unreach_only(&self) -> bool {
        self.unreach.is_some() && self.recalled.is_none() && self.seen.count() == 1
    }

    /// Notes a fault.
    ///
    /// # Errors
    /// Its NOTIFICATION, when the verdict is to end the session.
    pub(super) fn fault(
        &mut self,
        attribute: u8,
        verdict: Verdict,
        reason: FaultReason,
        raw: &[u8],
    ) -> Result<(), Notification> {
        if verdict == Verdict::Reset {
            return Err(reason.notification(attribute, raw));
        }
        if verdict == Verdict::TreatAsWithdraw && self.first.is_none() {
            self.first = Some(reason.notification(attribute, raw));
        }
        self.faults.push(attribute, verdict, reason);
        Ok(())
    }

    fn attribute(&mut self, attribute: &Attribute<'a>, negotiated: Negotiated) -> Result<(), Notification> {
        let Attribute { flags, code, raw, .. } = *attribute;
        if !self.seen.insert(code) {
            // RFC 7606 §3 g: twice MP_REACH_NLRI or MP_UNREACH_NLRI ends the session; of any other the first stands.
            let verdict = match code {
                attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI => Verdict::Reset,
                _ => Verdict::DiscardAttribute,
            };
            return self.fault(code, verdict, FaultReason::Duplicate, raw);
        }
        let Some(want) = attribute::defined_flags(code) else {
            return self.unrecognized(attribute);
        };
        if let Err((verdict, reason)) = self.precondition(code, negotiated) {
            return self.fault(code, verdict, reason, raw);
        }
        // RFC 7606 §3 c: Optional and Transitive must be as defined; Partial is not looked at.
        if flags & (attribute::OPTIONAL | attribute::TRANSITIVE) != want {
            return self.fault(
                code,
                attribute::malformed(code),
                FaultReason::Flags { got: flags, want },
                raw,
            );
        }
        match self.value(attribute, negotiated) {
            Ok(()) => {
                if flags & attribute::PARTIAL != 0 {
                    self.partial.insert(code);
                }
                Ok(())
            }
            // RFC 9774 §3: a set costs the routes wherever it stands, in AS4_PATH too.
            Err(FaultReason::AsSet) => self.fault(code, Verdict::TreatAsWithdraw, FaultReason::AsSet, raw),
            Err(reason) => self.fault(code, attribute::malformed(code), reason, raw),
        }
    }

    /// RFC 4271 §5, §6.3: what this speaker does not know.
    fn unrecognized(&mut self, attribute: &Attribute<'a>) -> Result<(), Notification> {
        let Attribute {
            flags,
            code,
            value,
            raw,
        } = *attribute;
        if flags & attribute::OPTIONAL == 0 {
            return self.fault(code, Verdict::Reset, FaultReason::UnrecognizedWellKnown, raw);
        }
        if flags & attribute::TRANSITIVE != 0 {
            self.unknown.push((code, value.to_vec()));
        }
        Ok(())
    }

    /// Attributes that are not even looked at from this peer.
    fn precondition(&self, code: u8, negotiated: Negotiated) -> Result<(), Refusal> {
        match code {
            // RFC 7606 §7.5, §7.9, §7.10: from an external peer they are discarded.
            attribute::LOCAL_PREF | attribute::ORIGINATOR_ID | attribute::CLUSTER_LIST
                if !negotiated.internal =>
            {
                Err((Verdict::DiscardAttribute, FaultReason::FromExternal))
            }
            // RFC 6793 §4.1: between speakers of four octets they are discarded.
            attribute::AS4_PATH | attribute::AS4_AGGREGATOR if negotiated.four_octet_as => {
                Err((Verdict::DiscardAttribute, FaultReason::FromFourOctet))
            }
            _ => Ok(()),
        }
    }

    fn value(&mut self, attribute: &Attribute<'a>, negotiated: Negotiated) -> Result<(), FaultReason> {
        let value = attribute.value;
        let width = Width::of(negotiated);
        match attribute.code {
            attribute::ORIGIN => self.origin = Some(origin(value)?),
            attribute::AS_PATH => self.as_path = Some(as_path::decode(value, width)?),
            attribute::NEXT_HOP => self.next_hop = Some(next_hop(value)?),
            attribute::MULTI_EXIT_DISC => self.med = Some(number(value)?),
            attribute::LOCAL_PREF => self.local_pref = Some(number(value)?),
            attribute::ATOMIC_AGGREGATE => {
                exactly(value, 0, "0")?;
                self.atomic_aggregate = true;
            }
            attribute::AGGREGATOR => self.aggregator = Some(aggregator(value, width)?),
            attribute::COMMUNITIES => self.communities = list(value, 4, zetta::communities)?,
            attribute::ORIGINATOR_ID => self.originator_id = Some(originator_id(value)?),
            attribute::CLUSTER_LIST => self.cluster_list = list(value, 4, cluster_list)?,
            attribute::MP_REACH_NLRI => self.reach = Some(multiprotocol::decode_reach(value, negotiated)?),
            attribute::MP_UNREACH_NLRI => {
                self.unreach = Some(multiprotocol::decode_unreach(value, negotiated)?);
            }
            attribute::EXTENDED_COMMUNITIES => {
                self.extended_communities = list(value, 8, extended_communities)?;
            }
            attribute::AS4_PATH => self.as4_path = Some(as4_path(value)?),
            attribute::AS4_AGGREGATOR => self.as4_aggregator = Some(aggregator(value, Width::Four)?),
            attribute::LARGE_COMMUNITIES => {
                self.large_communities = list(value, 12, zetta::large_communities)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// RFC 7606 §3 d: notes the attributes that every announced route must have and that are not there, in the order of
    /// their codes. NEXT_HOP counts among them only where routes stand in the NLRI field.
    pub(super) fn note_missing(&mut self, negotiated: Negotiated, needs_next_hop: bool) {
        let fresh = self.recalled.is_none();
        let missing = [
            (attribute::ORIGIN, fresh && self.origin.is_none()),
            (attribute::AS_PATH, fresh && self.as_path.is_none()),
            (attribute::NEXT_HOP, needs_next_hop && self.next_hop.is_none()),
            // RFC 4271 §5.1.5: every route of an internal peer has it.
            (
                attribute::LOCAL_PREF,
                fresh && self.local_pref.is_none() && negotiated.internal,
            ),
        ];
        for (code, is_missing) in missing {
            // One that is there, though malformed, has its own fault already.
            if is_missing && !self.faults.concern(code) {
                self.faults
                    .push(code, Verdict::TreatAsWithdraw, FaultReason::Missing);
            }
        }
    }

    /// The attributes of the announced routes; `None` when a mandatory one is missing.
    pub(super) fn attributes(&mut self, next_hop: IpAddr) -> Option<Arc<PathAttributes>> {
        if let Some(recalled) = &self.recalled {
            return Some(if recalled.next_hop == next_hop {
                Arc::clone(recalled)
            } else {
                Arc::new(PathAttributes {
                    next_hop,
                    ..PathAttributes::clone(recalled)
                })
            });
        }
        let origin = self.origin?;
        let as_path = self.as_path.take()?;
        let (as_path, aggregator) = self.two_octets_restored(as_path);
        Some(Arc::new(PathAttributes {
            origin,
            as_path,
            next_hop,
            med: self.med,
            local_pref: self.local_pref,
            atomic_aggregate: self.atomic_aggregate,
            aggregator,
            communities: std::mem::take(&mut self.communities),
            large_communities: std::mem::take(&mut self.large_communities),
            extended_communities: std::mem::take(&mut self.extended_communities),
            originator_id: self.originator_id,
            cluster_list: std::mem::take(&mut self.cluster_list),
            partial: self.partial,
            unknown: std::mem::take(&mut self.unknown),
        }))
    }

    /// RFC 6793 §4.2.3: what a peer of two octets says, together with what it passed on of the four octets.
    fn two_octets_restored(&mut self, as_path: AsPath) -> (AsPath, Option<(Asn, Ipv4Addr)>) {
        match (self.aggregator, self.as4_aggregator) {
            // Somebody of two octets aggregated anew: what AS4_PATH says is older than that.
            (Some((asn, address)), Some(_)) if asn != Asn::TRANS => {
                let verdict = Verdict::DiscardAttribute;
                let reason = FaultReason::Stale;
                self.faults.push(attribute::AS4_AGGREGATOR, verdict, reason);
                if self.as4_path.take().is_some() {
                    self.faults.push(attribute::AS4_PATH, verdict, reason);
                }
                (as_path, Some((asn, address)))
            }
            (aggregator, as4_aggregator) => {
                let aggregator = aggregator.map(|two| as4_aggregator.unwrap_or(two));
                match self.as4_path.take() {
                    Some(as4_path) => (as_path::merge(as_path, as4_path), aggregator),
                    None => (as_path, aggregator),
                }
            }
        }
    }
}

fn exactly(value: &[u8], length: usize, want: &'static str) -> Result<(), FaultReason> {
    if value.len() == length {
        Ok(())
    } else {
        Err(FaultReason::Length {
            got: value.len(),
            want,
        })
    }
}

/// RFC 7606 §7.1.
fn origin(value: &[u8]) -> Result<Origin, FaultReason> {
    match value {
        [0] => Ok(Origin::Igp),
        [1] => Ok(Origin::Egp),
        [2] => Ok(Origin::Incomplete),
        [other] => Err(FaultReason::Origin(*other)),
        _ => Err(FaultReason::Length {
            got: value.len(),
            want: "1",
        }),
    }
}

/// RFC 7606 §7.3: four octets; RFC 4271 §6.3: the address of a host.
fn next_hop(value: &[u8]) -> Result<Ipv4Addr, FaultReason> {
    let octets: [u8; 4] = value.try_into().map_err(|_| FaultReason::Length {
        got: value.len(),
        want: "4",
    })?;
    let address = Ipv4Addr::from(octets);
    host(address.into()).map(|()| address)
}

/// RFC 4271 §6.3: not "this network", a group, or reserved (RFC 6890 §2.2.2); of IPv6 neither the unspecified address
/// nor a group (RFC 4291 §2.5.2, §2.7). The loopback net passes: whether it may be a gateway is the question of whoever
/// programs the route.
pub(super) fn host(address: IpAddr) -> Result<(), FaultReason> {
    let is_host = match address {
        IpAddr::V4(address) => (1..224).contains(&address.octets()[0]),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_multicast(),
    };
    if is_host {
        Ok(())
    } else {
        Err(FaultReason::NextHop(address))
    }
}

/// RFC 7606 §7.9, RFC 4456 §8.
fn originator_id(value: &[u8]) -> Result<RouterId, FaultReason> {
    let octets: [u8; 4] = value.try_into().map_err(|_| FaultReason::Length {
        got: value.len(),
        want: "4",
    })?;
    RouterId::new(Ipv4Addr::from(octets)).ok_or(FaultReason::OriginatorZero)
}

/// RFC 4456 §8.
fn cluster_list(value: &[u8]) -> Option<Vec<Ipv4Addr>> {
    let (clusters, []) = value.as_chunks::<4>() else {
        return None;
    };
    Some(clusters.iter().copied().map(Ipv4Addr::from).collect())
}

/// RFC 4360 §2: a set of eight octets each, here ascending.
fn extended_communities(value: &[u8]) -> Option<Vec<[u8; 8]>> {
    let (communities, []) = value.as_chunks::<8>() else {
        return None;
    };
    let mut communities = communities.to_vec();
    communities.sort_unstable();
    communities.dedup();
    Some(communities)
}

fn number(value: &[u8]) -> Result<u32, FaultReason> {
    let octets: [u8; 4] = value.try_into().map_err(|_| FaultReason::Length {
        got: value.len(),
        want: "4",
    })?;
    Ok(u32::from_be_bytes(octets))
}

/// RFC 7606 §7.7, RFC 6793 §6: the length follows from the size of an AS number.
fn aggregator(value: &[u8], width: Width) -> Result<(Asn, Ipv4Addr), FaultReason> {
    match width {
        Width::Two => exactly(value, 6, "6")?,
        Width::Four => exactly(value, 8, "8")?,
    }
    let mut octets = Octets::new(value);
    // RFC 7607 §2: AS 0 makes it malformed.
    let asn = width.read(&mut octets).ok_or(FaultReason::AsZero)?;
    let address = octets.u32().ok_or(FaultReason::Length {
        got: value.len(),
        want: "8",
    })?;
    Ok((asn, Ipv4Addr::from(address)))
}

/// RFC 6793 §6: at least a segment of one.
fn as4_path(value: &[u8]) -> Result<AsPath, FaultReason> {
    if value.len() < 6 {
        return Err(FaultReason::Length {
            got: value.len(),
            want: "at least 6",
        });
    }
    as_path::decode_as4(value)
}

/// RFC 7606 §7.8, §7.10, §7.14, RFC 8092 §6: elements of one size, at least one of them.
fn list<T>(value: &[u8], size: usize, decode: impl FnOnce(&[u8]) -> Option<T>) -> Result<T, FaultReason> {
    let want = match size {
        4 => "a multiple of 4 above 0",
        8 => "a multiple of 8 above 0",
        _ => "a multiple of 12 above 0",
    };
    let bad = FaultReason::Length {
        got: value.len(),
        want,
    };
    if value.is_empty() || !value.len().is_multiple_of(size) {
        return Err(bad);
    }
    decode(value).ok_or(bad)
}
