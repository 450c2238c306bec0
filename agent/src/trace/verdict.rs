//! Where packets vanish, and why in all likelihood.

use super::{Hop, Loss, Place, Seen, Silence, Trace};
use crate::dataplane::probe::Kind;
use crate::doctor::{Check, Finding};

/// What two neighbouring places on the way have between them.
struct Between<'a> {
    trace: &'a Trace,
    /// The place where they were last seen; none where they never were.
    last: Option<&'a Hop>,
    /// The place where they should have been seen next.
    next: &'a Hop,
    near: &'a Seen,
    far: Option<&'a Seen>,
}

/// What is wrong.
pub(super) enum Verdict {
    /// Packets vanish on the way.
    Lost(Loss),
    /// They come to the pod, and it does not answer.
    Silent(Silence),
}

/// The first place from which packets are missing; small ones before large ones. Where a pod is silent, only the way there
/// is judged: a missing answer is then nobody else's fault.
pub(super) fn of(trace: &Trace, near: &Seen, far: Option<&Seen>) -> Option<Verdict> {
    if let Some(loss) = wrong_outer(trace, far) {
        return Some(Verdict::Lost(loss));
    }
    let reached = reached_in_silence(trace);
    for large in [false, true] {
        let count = |hop: &Hop| if large { hop.large } else { hop.small };
        let mut last = None;
        let judged = trace
            .hops
            .iter()
            .filter(|hop| hop.kind == Kind::Request || reached.is_none());
        for hop in judged {
            if count(hop) < trace.sent.count {
                let between = Between {
                    trace,
                    last,
                    next: hop,
                    near,
                    far,
                };
                let seen = count(hop);
                return Some(Verdict::Lost(if large {
                    between.too_large(seen)
                } else {
                    between.judge(seen)
                }));
            }
            last = Some(hop);
        }
    }
    reached.map(|link| Verdict::Silent(silence(trace, link)))
}

/// The link of the pod to which all small packets came, and from which not one answer did.
fn reached_in_silence(trace: &Trace) -> Option<&Hop> {
    let find = |kind: Kind, place: Place| {
        let mut hops = trace.hops.iter();
        hops.find(|hop| hop.kind == kind && hop.place == place)
    };
    let to = find(Kind::Request, Place::ToPod)?;
    let from = find(Kind::Answer, Place::FromPod)?;
    (to.small >= trace.sent.count && from.small == 0).then_some(to)
}

fn silence(trace: &Trace, link: &Hop) -> Silence {
    let pod = trace.to.address;
    Silence {
        finding: format!(
            "all packets reached {}, the link to the pod {pod}; it did not answer",
            named(link)
        ),
        cure: "a pod may refuse pings (net.ipv4.icmp_echo_ignore_all, a filter or a policy within it), or hang: ask it for \
               what it serves; for the way back, trace to a pod on the same node that answers pings"
            .to_owned(),
    }
}

/// Packets that leave for another node than the pod's, or from another address than the node's.
fn wrong_outer(trace: &Trace, far: Option<&Seen>) -> Option<Loss> {
    for hop in &trace.hops {
        let Some((source, destination)) = hop.outer else {
            continue;
        };
        let (from, to) = match hop.kind {
            Kind::Request => (&trace.from, &trace.to),
            Kind::Answer => (&trace.to, &trace.from),
        };
        if hop.place != Place::OutOfNic {
            continue;
        }
        if destination != to.node_address {
            return Some(Loss {
                place: format!("out of {} on {}", hop.link, hop.node),
                cause: format!(
                    "wrong next hop: {} sends packets for {} to {destination}, and the pod is on node {}, known by {}",
                    hop.node, to.address, to.node, to.node_address
                ),
                cure: format!("culvert route explain {} on {}", to.address, hop.node),
            });
        }
        // A wrong source is a fault where somebody minds.
        let minds = trace.hops.iter().any(|other| {
            other.kind == hop.kind && other.place == Place::OutOfTunnel && other.small < trace.sent.count
        });
        if source != from.node_address && (minds || far.is_none()) {
            return Some(Loss {
                place: format!("between the NIC and tunl0 of {}", to.node),
                cause: format!(
                    "wrong outer source: packets leave {} with {source}, which no node advertises ({} advertises {}), and {} \
                     drops them",
                    hop.node, from.node, from.node_address, to.node
                ),
                cure: format!(
                    "set routes.sourcePin to on for {}; culvert doctor there says more",
                    from.node
                ),
            });
        }
    }
    None
}

impl Between<'_> {
    fn place(&self) -> String {
        let next = named(self.next);
        match self.last {
            Some(last) => format!("between {} and {next}", named(last)),
            None => format!("before {next}"),
        }
    }

    /// The node of the next place: there, or on the way to it, it happens.
    fn doctor(&self, node: &str) -> &[Finding] {
        let of = if node == self.trace.from.node {
            Some(self.near)
        } else {
            self.far
        };
        of.map_or(&[], |seen| &seen.findings)
    }

    /// What a doctor says that explains it, of these checks.
    fn found(&self, node: &str, checks: &[Check], word: &str) -> Option<Loss> {
        let findings = self.doctor(node);
        let of = |check: &Check| {
            findings
                .iter()
                .find(|finding| finding.check == *check && finding.finding.contains(word))
        };
        let finding = checks.iter().find_map(of)?;
        Some(Loss {
            place: self.place(),
            cause: format!("on {node}: {} ({})", finding.finding, finding.evidence),
            cure: finding.cure.clone(),
        })
    }

    fn loss(&self, cause: String, cure: String) -> Loss {
        Loss {
            place: self.place(),
            cause,
            cure,
        }
    }

    fn judge(&self, seen: u32) -> Loss {
        let node = &self.next.node;
        if seen > 0 {
            return self.loss(
                format!(
                    "packets are lost now and then: {seen} of {} arrived there",
                    self.trace.sent.count
                ),
                format!("look at the counters of the links on {node}: ip -s link"),
            );
        }
        match self.next.place {
            Place::IntoTunnel => self.no_route(),
            Place::OutOfNic => self.not_sent(),
            Place::IntoNic => self.on_the_wire(),
            Place::OutOfTunnel => self
                .found(node, &[Check::Filters], "IP protocol 4")
                .or_else(|| self.found(node, &[Check::Strangers, Check::Tunnel, Check::ReversePath], ""))
                .unwrap_or_else(|| {
                    self.loss(
                        format!("{node} takes the tunnelled packets in and drops them: a packet filter on IP protocol 4, or tunl0 is down"),
                        format!("on {node}: culvert doctor; nft list ruleset; ip link show tunl0"),
                    )
                }),
            // Where no answer comes from the pod, that was judged before.
            Place::ToPod | Place::FromPod => self.not_forwarded(),
        }
    }

    /// It never came to the tunnel: the kernel has another route, or none.
    fn no_route(&self) -> Loss {
        let node = &self.next.node;
        let checks = [Check::Forwarding, Check::NextHop, Check::Tunnel, Check::Routes];
        if let Some(found) = self.found(node, &checks, "") {
            return found;
        }
        if self.next.kind == Kind::Answer
            && let Some(found) = self.found(node, &[Check::Filters], "forwards")
        {
            return found;
        }
        let (to, route) = match self.next.kind {
            Kind::Request => (&self.trace.to, &self.near.route),
            Kind::Answer => (
                &self.trace.from,
                self.far.map_or(&self.near.route, |far| &far.route),
            ),
        };
        let refused = self.trace.sent.refused.as_ref().filter(|_| self.last.is_none());
        let why = match (refused, route) {
            (Some(refused), _) => format!("{node} cannot send to {}: {refused}", to.address),
            (None, Some(route)) => format!(
                "{node} does not send packets for {} into tunl0, but by `{route}`",
                to.address
            ),
            (None, None) => format!("{node} has no route to {}", to.address),
        };
        self.loss(why, format!("on {node}: culvert route explain {}", to.address))
    }

    fn not_sent(&self) -> Loss {
        let node = &self.next.node;
        let other = self.other_node_address();
        if let Some(found) = self.found(node, &[Check::Filters], "IP protocol 4") {
            return found;
        }
        if !self.trace.tunnelled {
            return self.no_route();
        }
        if let Some(found) = self.found(node, &[Check::Address], "") {
            return found;
        }
        self.loss(
            format!("{node} encapsulates packets and cannot send them to {other}: no way there, or nobody answers for that address (ARP)"),
            format!("on {node}: ip route get {other}; ip neighbour show {other}"),
        )
    }

    fn on_the_wire(&self) -> Loss {
        if let Some(reason) = &self.trace.unasked {
            return self.loss(
                format!(
                    "nothing comes back from {}, and its agent could not be asked what it saw: {reason}",
                    self.trace.to.node
                ),
                format!(
                    "let http.listen of its agent be reached by nodes; meanwhile on {}: culvert doctor",
                    self.trace.to.node
                ),
            );
        }
        let (last, next) = (
            self.last.map_or("the one", |last| last.node.as_str()),
            &self.next.node,
        );
        if self.trace.tunnelled {
            return self.loss(
                format!("something between {last} and {next} drops IP protocol 4 (or {next} has lost its address)"),
                "let IP protocol 4 (IPIP) through between the nodes: security groups, firewalls, the hosts' own filters before \
                 the kernel's; else an ipipMode of Never or CrossSubnet".to_owned(),
            );
        }
        self.loss(
            format!("something between {last} and {next} drops packets with pods' addresses"),
            "let the pod network through between the nodes (source and destination checks of clouds), or set ipipMode to Always"
                .to_owned(),
        )
    }

    fn not_forwarded(&self) -> Loss {
        let node = &self.next.node;
        let to = match self.next.kind {
            Kind::Request => &self.trace.to,
            Kind::Answer => &self.trace.from,
        };
        self.found(node, &[Check::Forwarding], "")
            .or_else(|| self.found(node, &[Check::Filters], "forwards"))
            .or_else(|| self.found(node, &[Check::ReversePath], ""))
            .unwrap_or_else(|| {
                self.loss(
                    format!(
                        "{node} does not hand packets to {}: it has no pod with that address (the blackhole of its block drops \
                         them), a packet filter or a network policy drops what it forwards, or rp_filter on tunl0 is strict",
                        to.address
                    ),
                    format!(
                        "on {node}: ip route get {}; nft list ruleset; sysctl net.ipv4.conf.tunl0.rp_filter",
                        to.address
                    ),
                )
            })
    }

    /// Small ones come through there, large ones do not.
    fn too_large(&self, seen: u32) -> Loss {
        let sent = &self.trace.sent;
        let (from, to) = (&self.trace.from.node, &self.trace.to.node);
        let mut hops = self.trace.hops.iter();
        let is_answered = hops.any(|hop| hop.kind == Kind::Answer && hop.small > 0);
        let (came, cure) = match sent.largest.or(is_answered.then_some(sent.small)) {
            Some(most) => (
                format!("the largest that came through had {most}"),
                format!(
                    "set tunnel.mtu to {most} or less on every node, or raise the MTU between {from} and {to}"
                ),
            ),
            None => (
                format!("of those between this and {} nothing is known", sent.small),
                format!(
                    "raise the MTU between {from} and {to}, or set tunnel.mtu on every node to what passes"
                ),
            ),
        };
        let refused = sent.refused.as_ref().filter(|_| self.last.is_none());
        if let Some(refused) = refused {
            return self.loss(
                format!(
                    "{} cannot send packets of {} bytes: {refused}",
                    self.next.node, sent.large
                ),
                cure,
            );
        }
        self.loss(
            format!(
                "the MTU is too large for the way: packets of {} bytes do not pass there ({seen} of {}), and {came}",
                sent.large, sent.count
            ),
            cure,
        )
    }

    fn other_node_address(&self) -> String {
        let to = match self.next.kind {
            Kind::Request => &self.trace.to,
            Kind::Answer => &self.trace.from,
        };
        to.node_address.to_string()
    }
}

fn named(hop: &Hop) -> String {
    format!("{} of {}", hop.link, hop.node)
}
