//! What a speaker and its peers are configured with.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::id::{Asn, HoldTime, RouterId};
use crate::policy::filter::Policy;
use crate::wire::message::Family;

/// What a speaker is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerConfig {
    /// Our AS.
    pub asn: Asn,
    /// Our BGP Identifier.
    pub router_id: RouterId,
    /// The address that peers send IPv4 packets to: the NEXT_HOP of what we announce.
    pub local_address: Ipv4Addr,
    /// The same for IPv6. Without one no IPv6 route is announced with this node as its next hop.
    pub local_address_v6: Option<Ipv6Addr>,
    /// The hold time that we propose; 90 s is usual (RFC 4271 §10).
    pub hold_time: HoldTime,
    /// ConnectRetryTime (RFC 4271 §10): how long one attempt to connect may take, and the pause between two of them.
    pub connect_retry: Duration,
    /// Seconds, up to 4095, for which peers keep our routes after this process is gone (RFC 4724 §3), and for which a
    /// restarted one waits for its peers before it calls itself converged.
    pub restart_time: u16,
    /// The kernel still holds the routes of a former run of this process: peers are told so (RFC 4724 §3, R and F).
    pub restarted: bool,
    /// How many next hops a route may have at once (equal-cost multipath); 1 is the best path alone, and 0 counts as 1.
    pub multipath: usize,
    /// RFC 8212 §2: with an external peer that has no policy in a direction, nothing is exchanged in that direction.
    pub external_needs_policy: bool,
    /// Seed of the jitter of timers (RFC 4271 §10). It should differ between nodes.
    pub seed: u64,
}

impl SpeakerConfig {
    /// A speaker with the times that RFC 4271 §10 and RFC 4724 suggest, IPv4 alone, one next hop a route, and external
    /// peers that need no policy.
    #[must_use]
    pub fn new(asn: Asn, router_id: RouterId, local_address: Ipv4Addr) -> Self {
        Self {
            asn,
            router_id,
            local_address,
            local_address_v6: None,
            hold_time: HoldTime::SUGGESTED,
            connect_retry: Duration::from_secs(120),
            restart_time: 120,
            restarted: false,
            multipath: 1,
            external_needs_policy: false,
            seed: u64::from(u32::from(local_address)),
        }
    }
}

/// A peer, as configured.
///
/// Of a peer whose configuration changes, its session is begun anew only where the OPEN or the connection would be
/// another one. All else is applied to the session that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Where to connect to, and where connections from it come from.
    pub address: IpAddr,
    /// Its AS.
    pub asn: Asn,
    /// The AS that we are in towards this peer, where that is not [`SpeakerConfig::asn`] (RFC 7705 §3.1, "Local AS").
    pub local_asn: Option<Asn>,
    /// In place of [`SpeakerConfig::hold_time`].
    pub hold_time: Option<HoldTime>,
    /// The longest time between two KEEPALIVEs; a third of the hold time where that is less, or where this is not given.
    pub keepalive: Option<Duration>,
    /// In place of [`SpeakerConfig::connect_retry`].
    pub connect_retry: Option<Duration>,
    /// Never dial: wait for the peer (RFC 4271 §8.1.1, PassiveTcpEstablishment).
    pub passive: bool,
    /// How often our own AS may stand in the AS_PATH of what it announces.
    pub allowed_own_as: u8,
    /// The first AS in the AS_PATH of what an external peer announces must be its own (RFC 4271 §6.3).
    pub enforce_first_as: bool,
    /// The peer is a client of ours (RFC 4456 §2), in the cluster of this number.
    pub reflector_client: Option<Ipv4Addr>,
    /// Whose address is the next hop of what it is told.
    pub next_hop: NextHopMode,
    /// The families whose routes are exchanged (RFC 4760 §8), with what goes for each.
    pub families: BTreeMap<Family, FamilyConfig>,
    /// In place of [`SpeakerConfig::restart_time`], as announced to this peer.
    pub restart_time: Option<u16>,
    /// Seconds, up to 16777215, for which stale routes are kept after the restart time is over (RFC 9494 §4.2): ours
    /// at the peer, and the peer's here if it asks for no less. 0 does not offer it.
    pub long_lived_stale_time: u32,
    /// What is let in; `None` for all, or for nothing where [`SpeakerConfig::external_needs_policy`] says so.
    pub import: Option<Arc<Policy>>,
    /// What is let out; as `import`.
    pub export: Option<Arc<Policy>>,
    /// For the driver: the TCP port to dial; the usual one where it is not given.
    pub port: Option<u16>,
    /// For the driver: the address to connect from.
    pub source: Option<IpAddr>,
    /// For the driver: the most hops that the peer is away (RFC 5082); `None` leaves the TTL alone.
    pub ttl_security: Option<u8>,
    /// For the driver: the key of RFC 2385.
    pub password: Option<Password>,
}

impl PeerConfig {
    /// A peer of IPv4 unicast with nothing special about it.
    #[must_use]
    pub fn new(address: IpAddr, asn: Asn) -> Self {
        Self {
            address,
            asn,
            local_asn: None,
            hold_time: None,
            keepalive: None,
            connect_retry: None,
            passive: false,
            allowed_own_as: 0,
            enforce_first_as: true,
            reflector_client: None,
            next_hop: NextHopMode::Auto,
            families: [(Family::IPV4_UNICAST, FamilyConfig::default())].into(),
            restart_time: None,
            long_lived_stale_time: 0,
            import: None,
            export: None,
            port: None,
            source: None,
            ttl_security: None,
            password: None,
        }
    }

    /// Whether what is let in, or what is known of where it came from, would be another under `other`.
    pub(crate) fn imports_otherwise(&self, other: &Self) -> bool {
        let rules = |config: &Self| {
            (
                config.allowed_own_as,
                config.enforce_first_as,
                config.reflector_client,
                config.import.clone(),
            )
        };
        rules(self) != rules(other)
    }

    /// Whether the OPEN or the connection would be another one under `other`, so that the session must begin anew.
    pub(crate) fn needs_new_session(&self, other: &Self) -> bool {
        let terms = |config: &Self| {
            (
                (config.asn, config.local_asn, config.hold_time),
                (config.restart_time, config.long_lived_stale_time),
                // Not the port: it is where the next connection goes.
                (config.source, config.ttl_security, config.password.clone()),
                config
                    .families
                    .iter()
                    .map(|(family, of)| {
                        (
                            *family,
                            (of.add_path_send, of.add_path_receive, of.extended_next_hop),
                        )
                    })
                    .collect::<Vec<_>>(),
            )
        };
        terms(self) != terms(other)
    }
}

/// What goes for one family of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyConfig {
    /// Tell the peer of all paths, not of the best alone, if it can take them (RFC 7911).
    pub add_path_send: bool,
    /// Take several paths to one destination from the peer, if it sends them (RFC 7911).
    pub add_path_receive: bool,
    /// IPv4 routes may have IPv6 next hops (RFC 8950). Says something of IPv4 only.
    pub extended_next_hop: bool,
    /// How many routes are taken from the peer.
    pub limit: PrefixLimit,
}

/// How many routes of one family are taken from a peer (RFC 4271 §6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLimit {
    /// With more than this the session ends (RFC 4486 §4, Maximum Number of Prefixes Reached).
    pub most: usize,
    /// With more than this people are warned.
    pub warn: usize,
    /// How long the peer is refused after that.
    pub pause: Duration,
}

impl Default for PrefixLimit {
    /// More than 200,000 routes from one peer are a fault of the peer: a node announces its blocks, and a pool that
    /// would need as many /26 blocks as this holds 12 million addresses. It bounds memory to some tens of MiB a peer.
    fn default() -> Self {
        Self {
            most: 200_000,
            warn: 150_000,
            pause: Duration::from_secs(60),
        }
    }
}

/// Whose address is the next hop of what a peer is told (RFC 4271 §5.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHopMode {
    /// Ours, save for what is reflected: a reflector leaves the next hop as it is (RFC 4456 §10).
    #[default]
    Auto,
    /// Ours, always.
    Own,
    /// The one of the path, if there is one; ours for what this node originates.
    Keep,
}

/// A key that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Arc<str>);

impl Password {
    /// One of these octets.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self(key.into())
    }

    /// The key itself, for the kernel alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}
