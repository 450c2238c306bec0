//! The way of packets from one pod to another and back, hop by hop: where they should be seen, and where they were.
//!
//! Pure: [`Trace::new`] judges what both nodes have counted. `trace/run.rs` sends and counts.

mod lines;
mod location;
pub mod run;
mod verdict;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::dataplane::probe::{Kind, Sighting, Sightings};
use crate::desired::TUNNEL_DEVICE;
use crate::doctor::Finding;
use verdict::Verdict;

pub use location::NoWay;
pub(crate) use location::locate;

/// One end of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// The pod's address, or that of a node's tunnel device.
    pub address: Ipv4Addr,
    /// The node that it is on.
    pub node: String,
    /// The address that this node advertises.
    pub node_address: Ipv4Addr,
    /// The link to the pod on its node, where that is known; none for the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// It is the node itself, not a pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_node: bool,
}

/// The way that packets are to take, as the sender's node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The one that sends.
    pub from: End,
    /// The one that answers.
    pub to: End,
    /// Packets travel in packets between the nodes.
    pub tunnelled: bool,
    /// The largest packet that pods may send there, in octets.
    pub mtu: u32,
    /// The route that the kernel has there, as `ip route` prints it.
    pub route: Option<String>,
}

/// What one node has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// What, and how often: pairs, since the keys are no text.
    pub sightings: Vec<(Sighting, u32)>,
    /// What its doctor says meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// The route that its kernel has for the other end, as `ip route` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
}

impl Seen {
    /// With the sightings of a capture.
    #[must_use]
    pub fn new(sightings: Sightings, route: Option<String>) -> Self {
        Self {
            sightings: sightings.into_iter().collect(),
            findings: Vec::new(),
            route,
        }
    }
}

/// What was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    /// Packets of each size.
    pub count: u32,
    /// Octets of the small ones.
    pub small: u16,
    /// Octets of the large ones: as much as pods may send.
    pub large: u16,
    /// Why this node could not send some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Larger than the small ones and smaller than the large ones: the largest that came through, where those did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest: Option<u16>,
    /// Octets of the small and the large ones that the first pod was asked to answer itself, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<(u16, u16)>,
}

/// A place on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// The pod's link, coming from it.
    FromPod,
    /// Into the tunnel.
    IntoTunnel,
    /// Out of a NIC.
    OutOfNic,
    /// Into a NIC.
    IntoNic,
    /// Out of the tunnel.
    OutOfTunnel,
    /// The pod's link, going to it.
    ToPod,
}

/// A place on the way, and what was seen there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// The node.
    pub node: String,
    /// Where on it.
    pub place: Place,
    /// The link on which they were seen, or where they should have been.
    pub link: String,
    /// Requests, or answers to them.
    pub kind: Kind,
    /// How many small ones were seen.
    pub small: u32,
    /// How many large ones.
    pub large: u32,
    /// The outer addresses, where they were encapsulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<(Ipv4Addr, Ipv4Addr)>,
}

/// What became of the packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The one that sends.
    pub from: End,
    /// The one that answers.
    pub to: End,
    /// Packets travel in packets between the nodes.
    pub tunnelled: bool,
    /// What was sent.
    pub sent: Sent,
    /// What came from the first pod itself: the other packets are sent by its host in its place. None where it was asked nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Hop>,
    /// The places in the order of the way, there and back.
    pub hops: Vec<Hop>,
    /// Why the agent of the other node was not asked, so that nothing is known of what was seen there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unasked: Option<String>,
    /// Where they vanish, and why in all likelihood; none where all came back, or came to a pod that does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// All of them came to the pod's link, and it has not answered: the way there is well, of the way back nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
}

/// Packets came to a pod that has not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Silence {
    /// What was seen, in one sentence.
    pub finding: String,
    /// What tells more.
    pub cure: String,
}

/// Where packets vanish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loss {
    /// Where: `between … and …`.
    pub place: String,
    /// The likely cause, in one sentence.
    pub cause: String,
    /// What mends it.
    pub cure: String,
}

impl Trace {
    /// Judges what the node of the sender (`near`) and that of the other (`far`; not where they are on one node) have seen,
    /// or why the other could not be asked.
    #[must_use]
    pub fn new(way: &Way, sent: Sent, near: &Seen, far: Result<&Seen, String>) -> Self {
        let mut trace = Self {
            from: way.from.clone(),
            to: way.to.clone(),
            tunnelled: way.tunnelled,
            own: own_packets(way, &sent, near),
            sent,
            hops: Vec::new(),
            unasked: far.as_ref().err().cloned(),
            loss: None,
            silence: None,
        };
        let (has_far, far) = (way.from.node != way.to.node, far.ok());
        for kind in [Kind::Request, Kind::Answer] {
            for (is_near, place) in trace.places(kind, has_far) {
                // What nobody has counted is no place where something is missing.
                let seen = if is_near || !has_far { Some(near) } else { far };
                if let Some(seen) = seen {
                    trace.hops.push(trace.hop(is_near, place, kind, seen));
                }
            }
        }
        trace.name_the_link_of_the_silent();
        match verdict::of(&trace, near, far) {
            Some(Verdict::Lost(loss)) => trace.loss = Some(loss),
            Some(Verdict::Silent(silence)) => trace.silence = Some(silence),
            None => {}
        }
        trace
    }

    /// The link that leads to the other pod leads from it as well, also where nothing was seen to come from there.
    fn name_the_link_of_the_silent(&mut self) {
        let mut hops = self.hops.iter();
        let to = hops.find(|hop| (hop.kind, hop.place) == (Kind::Request, Place::ToPod) && hop.small > 0);
        let link = to.map(|to| to.link.clone());
        let mut hops = self.hops.iter_mut();
        let from = hops.find(|hop| (hop.kind, hop.place) == (Kind::Answer, Place::FromPod));
        if let (Some(link), Some(from)) = (link, from) {
            from.link = link;
        }
    }

    /// The places on the way of requests, or of answers, each with whether it is on the sender's node.
    fn places(&self, kind: Kind, has_far: bool) -> Vec<(bool, Place)> {
        let goes = kind == Kind::Request;
        let (first, last) = if goes {
            (&self.from, &self.to)
        } else {
            (&self.to, &self.from)
        };
        let mut places = Vec::new();
        // What this host sends in the pod's place never was on the pod's link.
        if !goes && !first.is_node {
            places.push((!has_far, Place::FromPod));
        }
        if has_far {
            if self.tunnelled {
                places.push((goes, Place::IntoTunnel));
            }
            places.extend([(goes, Place::OutOfNic), (!goes, Place::IntoNic)]);
            if self.tunnelled {
                places.push((!goes, Place::OutOfTunnel));
            }
        }
        if !last.is_node {
            places.push((!goes || !has_far, Place::ToPod));
        }
        places
    }

    fn hop(&self, is_near: bool, place: Place, kind: Kind, seen: &Seen) -> Hop {
        let end = if is_near { &self.from } else { &self.to };
        // On one node both pods are near: whose link it is goes by the direction.
        let pod = match (place, kind) {
            (Place::FromPod, _) | (Place::ToPod, Kind::Request) => &self.to,
            _ => &self.from,
        };
        let outgoing = matches!(place, Place::IntoTunnel | Place::OutOfNic | Place::ToPod);
        let is_nic = |link: &str| link != TUNNEL_DEVICE && link != "lo" && !link.starts_with("cali");
        let mut hop = Hop {
            node: end.node.clone(),
            place,
            link: match place {
                Place::FromPod | Place::ToPod => pod.link.clone().unwrap_or_else(|| "cali…".to_owned()),
                Place::IntoTunnel | Place::OutOfTunnel => TUNNEL_DEVICE.to_owned(),
                Place::OutOfNic | Place::IntoNic => "NIC".to_owned(),
            },
            kind,
            small: 0,
            large: 0,
            outer: None,
        };
        let here = seen.sightings.iter().filter(|(sighting, _)| {
            let link = sighting.link.as_str();
            let on_link = match place {
                Place::FromPod | Place::ToPod => match &pod.link {
                    Some(own) => own == link,
                    None => link.starts_with("cali"),
                },
                Place::IntoTunnel | Place::OutOfTunnel => link == TUNNEL_DEVICE,
                Place::OutOfNic | Place::IntoNic => {
                    is_nic(link) && (!self.tunnelled || sighting.outer.is_some())
                }
            };
            on_link && sighting.outgoing == outgoing && sighting.kind == kind
        });
        let mut link = None;
        for (sighting, count) in here {
            // A bridge and its port, a bond and its halves see the same packet: it counts once.
            if sighting.size == self.sent.small {
                hop.small = hop.small.max(*count);
            } else if sighting.size == self.sent.large {
                hop.large = hop.large.max(*count);
            } else {
                continue;
            }
            hop.outer = sighting.outer.or(hop.outer);
            link = Some(sighting.link.clone());
        }
        if let Some(link) = link {
            hop.link = link;
        }
        hop
    }
}

/// The answers of the first pod on its own link: they show that what it sends comes out there.
fn own_packets(way: &Way, sent: &Sent, near: &Seen) -> Option<Hop> {
    let (small, large) = sent.own?;
    let link = way.from.link.clone()?;
    let count = |size: u16| {
        let of_size = near.sightings.iter().filter(|(seen, _)| {
            (seen.link.as_str(), seen.outgoing, seen.kind, seen.size)
                == (link.as_str(), false, Kind::Answer, size)
        });
        of_size.map(|(_, count)| *count).max().unwrap_or(0)
    };
    Some(Hop {
        node: way.from.node.clone(),
        place: Place::FromPod,
        kind: Kind::Request,
        small: count(small),
        large: count(large),
        outer: None,
        link,
    })
}

#[cfg(test)]
mod tests;
