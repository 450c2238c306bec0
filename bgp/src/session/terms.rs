//! What this speaker brings to a session: the terms that its OPEN offers (RFC 4271 §4.2, RFC 5492).

use std::sync::Arc;
use std::time::Duration;

use crate::config::{PeerConfig, SpeakerConfig};
use crate::id::{Asn, HoldTime};
use crate::wire::message::{Capability, Directions, Family, GracefulRestart, LongLivedFamily, Open};

/// RFC 4724 §3: twelve bits.
const MAX_RESTART_TIME: u16 = 0x0fff;

/// RFC 9494 §3.1: 24 bits.
pub(super) const MAX_STALE_TIME: u32 = 0x00ff_ffff;

/// What this speaker brings to a session with one peer.
#[derive(Clone, Debug)]
pub(crate) struct Terms<'a> {
    /// The speaker's configuration.
    pub(crate) config: &'a SpeakerConfig,
    /// The peer's.
    pub(crate) peer: Arc<PeerConfig>,
    /// Whether the peer is in our AS.
    pub(crate) internal: bool,
    /// RFC 4724 §3: the R bit.
    pub(crate) restarted: bool,
    /// RFC 4724 §3: the F bits.
    pub(crate) forwarding_kept: bool,
}

impl Terms<'_> {
    /// Our AS towards the peer.
    pub(crate) fn local_asn(&self) -> Asn {
        self.peer.local_asn.unwrap_or(self.config.asn)
    }

    /// The hold time that we propose.
    pub(crate) fn hold_time(&self) -> HoldTime {
        self.peer.hold_time.unwrap_or(self.config.hold_time)
    }

    /// ConnectRetryTime (RFC 4271 §10).
    pub(crate) fn connect_retry(&self) -> Duration {
        self.peer.connect_retry.unwrap_or(self.config.connect_retry)
    }

    /// Our OPEN.
    pub(crate) fn open(&self) -> Open {
        Open {
            asn: self.local_asn(),
            hold_time: self.hold_time(),
            router_id: self.config.router_id,
            capabilities: self.capabilities(),
        }
    }

    fn capabilities(&self) -> Vec<Capability> {
        let families = &self.peer.families;
        let restart_time = self.peer.restart_time.unwrap_or(self.config.restart_time);
        let mut capabilities: Vec<_> = families.keys().copied().map(Capability::MultiProtocol).collect();
        capabilities.extend([
            Capability::RouteRefresh,
            Capability::EnhancedRouteRefresh,
            Capability::ExtendedMessage,
            Capability::FourOctetAs(self.local_asn()),
            Capability::GracefulRestart(GracefulRestart {
                restarted: self.restarted,
                notification: true,
                restart_time: restart_time.min(MAX_RESTART_TIME),
                families: families
                    .keys()
                    .map(|&family| (family, self.forwarding_kept))
                    .collect(),
            }),
        ]);
        let stale_time = self.peer.long_lived_stale_time.min(MAX_STALE_TIME);
        if stale_time > 0 {
            let long_lived = families.keys().map(|&family| LongLivedFamily {
                family,
                forwarding_kept: self.forwarding_kept,
                stale_time,
            });
            capabilities.push(Capability::LongLivedGracefulRestart(long_lived.collect()));
        }
        let add_path = families.iter().filter_map(|(&family, of)| {
            let directions = Directions {
                send: of.add_path_send,
                receive: of.add_path_receive,
            };
            (directions != Directions::default()).then_some((family, directions))
        });
        let add_path: Vec<_> = add_path.collect();
        if !add_path.is_empty() {
            capabilities.push(Capability::AddPath(add_path));
        }
        if families
            .get(&Family::IPV4_UNICAST)
            .is_some_and(|of| of.extended_next_hop)
        {
            let pair = (Family::IPV4_UNICAST, Family::IPV6_UNICAST.afi);
            capabilities.push(Capability::ExtendedNextHop(vec![pair]));
        }
        capabilities
    }
}
