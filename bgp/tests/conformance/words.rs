//! The words of the conversations, as values and back.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_bgp::config::{FamilyConfig, NextHopMode};
use culvert_bgp::id::{Asn, HoldTime, Prefix, RouterId};
use culvert_bgp::policy::filter::Policy;
use culvert_bgp::rib::community;
use culvert_bgp::speaker::{PeerConfig, Speaker, SpeakerConfig, TransportError};
use culvert_bgp::wire::message::{
    AsPath, AsSegment, Capability, Directions, Family, GracefulRestart, LongLivedFamily, Message, Nlri,
    Notification, Open, PathAttributes, RefreshKind, Update,
};
use culvert_bgp::wire::{self, Negotiated};

pub(crate) fn asn(text: &str) -> Asn {
    Asn::new(text.parse().unwrap()).unwrap()
}

pub(crate) fn prefix(text: &str) -> Prefix {
    Prefix::new(text.parse().unwrap())
}

/// `key=value` words.
pub(crate) fn pairs<'a>(words: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    words.iter().filter_map(|word| word.split_once('=')).collect()
}

pub(crate) fn family(text: &str) -> Family {
    let (afi, safi) = text.split_once('/').unwrap();
    Family {
        afi: afi.parse().unwrap(),
        safi: safi.parse().unwrap(),
    }
}

pub(crate) fn open(words: &[&str]) -> Message {
    let options = pairs(words);
    let get = |key, default| *options.get(key).unwrap_or(&default);
    let asn = asn(get("as", "64512"));
    let families: Vec<Family> = match get("families", "1/1") {
        "none" => vec![],
        families => families.split(',').map(family).collect(),
    };
    let mut capabilities: Vec<_> = families.iter().copied().map(Capability::MultiProtocol).collect();
    capabilities.push(Capability::FourOctetAs(asn));
    // gr=120, gr=120R, gr=120F, gr=120RFN
    let restart = get("gr", "120F");
    let of_restart = if families.is_empty() {
        &[Family::IPV4_UNICAST][..]
    } else {
        &families
    };
    if restart != "none" {
        let kept = restart.contains('F');
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            notification: restart.contains('N'),
            restarted: restart.contains('R'),
            restart_time: restart.trim_end_matches(['R', 'F', 'N']).parse().unwrap(),
            families: of_restart.iter().map(|&family| (family, kept)).collect(),
        }));
    }
    if let Some(time) = options.get("llgr") {
        let long_lived = families.iter().map(|&family| LongLivedFamily {
            family,
            forwarding_kept: true,
            stale_time: time.parse().unwrap(),
        });
        capabilities.push(Capability::LongLivedGracefulRestart(long_lived.collect()));
    }
    for word in words {
        let both = Directions {
            send: true,
            receive: true,
        };
        capabilities.extend(match *word {
            "add-path" => Some(Capability::AddPath(
                families.iter().map(|&family| (family, both)).collect(),
            )),
            "enhanced-refresh" => Some(Capability::EnhancedRouteRefresh),
            "refresh" => Some(Capability::RouteRefresh),
            _ => None,
        });
    }
    Message::Open(Open {
        asn,
        hold_time: HoldTime::new(get("hold", "90").parse().unwrap()).unwrap(),
        router_id: RouterId::new(get("id", "172.18.0.11").parse().unwrap()).unwrap(),
        capabilities,
    })
}

/// `172.18.0.12=65001;passive;client=1.0.0.1`: the AS is ours where none is given.
pub(crate) fn peer(word: &str) -> PeerConfig {
    let mut parts = word.split(';');
    let head = parts.next().unwrap();
    let (address, number) = head.split_once('=').unwrap_or((head, "64512"));
    let mut config = PeerConfig::new(address.parse().unwrap(), asn(number));
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "passive" => config.passive = true,
            "client" => config.reflector_client = Some(value.parse().unwrap()),
            "v6" => {
                config
                    .families
                    .insert(Family::IPV6_UNICAST, FamilyConfig::default());
            }
            "add-path" => config.families.values_mut().for_each(|family| {
                family.add_path_send = true;
                family.add_path_receive = true;
            }),
            "limit" => config.families.values_mut().for_each(|family| {
                family.limit.most = value.parse().unwrap();
            }),
            "keep" => config.next_hop = NextHopMode::Keep,
            "llgr" => config.long_lived_stale_time = value.parse().unwrap(),
            "hold" => config.hold_time = HoldTime::new(value.parse().unwrap()),
            "local-as" => config.local_asn = Some(asn(value)),
            "allow-as" => config.allowed_own_as = value.parse().unwrap(),
            "import" => config.import = Some(policy(value)),
            "export" => config.export = Some(policy(value)),
            other => panic!("{other} is nothing that a peer has"),
        }
    }
    config
}

pub(crate) fn policy(word: &str) -> Arc<Policy> {
    Arc::new(match word {
        "all" => Policy::ACCEPT,
        "nothing" => Policy::REJECT,
        other => panic!("{other} is no policy"),
    })
}

/// `10.65.1.0/26`, or `10.65.1.0/26#2` with a path id.
pub(crate) fn nlri(text: &str) -> Nlri {
    let (net, path_id) = text.split_once('#').unwrap_or((text, "0"));
    Nlri {
        prefix: prefix(net),
        path_id: path_id.parse().unwrap(),
    }
}

pub(crate) fn community(text: &str) -> u32 {
    match text {
        "no-export" => community::NO_EXPORT,
        "no-llgr" => community::NO_LLGR,
        "llgr-stale" => community::LLGR_STALE,
        other => panic!("{other} is no community"),
    }
}

pub(crate) fn announce(words: &[&str]) -> Message {
    let options = pairs(words);
    let path = options
        .get("path")
        .map(|path| path.split(',').map(asn).collect::<Vec<_>>());
    let attributes = PathAttributes {
        as_path: AsPath {
            segments: path.into_iter().map(AsSegment::Sequence).collect(),
        },
        med: options.get("med").map(|med| med.parse().unwrap()),
        local_pref: Some(options.get("pref").unwrap_or(&"100").parse().unwrap()),
        originator_id: options
            .get("originator")
            .and_then(|id| RouterId::new(id.parse().unwrap())),
        cluster_list: options
            .get("clusters")
            .map(|list| list.split(',').map(|id| id.parse().unwrap()).collect())
            .unwrap_or_default(),
        communities: options
            .get("community")
            .map(|word| community(word))
            .into_iter()
            .collect(),
        ..PathAttributes::new(options.get("via").unwrap_or(&"172.18.0.11").parse().unwrap())
    };
    let announced = words
        .iter()
        .filter(|word| !word.contains('='))
        .map(|word| nlri(word))
        .collect();
    Message::Update(Update {
        announced,
        attributes: Some(Arc::new(attributes)),
        ..Update::default()
    })
}

/// What the peer writes, on the terms that it sees.
pub(crate) fn message(words: &[&str], negotiated: Negotiated) -> Vec<u8> {
    let (kind, rest) = words.split_first().unwrap();
    let message = match *kind {
        "open" => open(rest),
        "keepalive" => Message::Keepalive,
        "refresh" => Message::RouteRefresh {
            family: Family::IPV4_UNICAST,
            kind: match rest {
                ["begin"] => RefreshKind::BeginOfRr,
                ["end"] => RefreshKind::EndOfRr,
                _ => RefreshKind::Request,
            },
        },
        "announce" => announce(rest),
        "withdraw" => {
            let withdrawn = rest.iter().map(|word| nlri(word)).collect();
            Message::Update(Update {
                withdrawn,
                ..Update::default()
            })
        }
        "end-of-rib" => {
            return wire::encode_end_of_rib(rest.first().map_or(Family::IPV4_UNICAST, |word| family(word)));
        }
        "notification" => {
            let (code, subcode) = rest[0].split_once('/').unwrap();
            let (code, subcode) = (code.parse().unwrap(), subcode.parse().unwrap());
            let text = rest[1..].join(" ");
            Message::Notification(if text.is_empty() {
                Notification::new(code, subcode)
            } else {
                Notification::cease_with_text(subcode, &text)
            })
        }
        "octets" => {
            let octet = |word: &&str| u8::from_str_radix(word, 16).unwrap();
            return rest.iter().map(octet).collect();
        }
        other => panic!("{other} is no message"),
    };
    wire::encode(&message, negotiated)
}

pub(crate) fn error(word: &str) -> TransportError {
    match word {
        "refused" => TransportError::Refused,
        "timed-out" => TransportError::TimedOut,
        "reset" => TransportError::Reset,
        "unreachable" => TransportError::Unreachable,
        "ended" => TransportError::Ended,
        "queue-full" => TransportError::SendQueueFull,
        other => panic!("{other} is no error"),
    }
}

pub(crate) fn speaker(now: Instant, settings: &BTreeMap<&str, &str>) -> Speaker {
    let get = |key, default| *settings.get(key).unwrap_or(&default);
    let router_id = RouterId::new(get("id", "172.18.0.10").parse().unwrap()).unwrap();
    let config = SpeakerConfig {
        local_address_v6: get("v6", "none").parse().ok(),
        hold_time: HoldTime::new(get("hold", "90").parse().unwrap()).unwrap(),
        connect_retry: Duration::from_secs(5),
        restarted: get("restarted", "no") == "yes",
        multipath: get("multipath", "1").parse().unwrap(),
        external_needs_policy: get("policy", "free") == "needed",
        seed: 1,
        ..SpeakerConfig::new(asn(get("as", "64512")), router_id, Ipv4Addr::new(172, 18, 0, 10))
    };
    Speaker::new(config, now)
}

pub(crate) fn words_of_status(status: &culvert_bgp::speaker::PeerStatus) -> String {
    let reason = status
        .reason
        .as_ref()
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    format!(
        "{} AS {} {}{reason}: received {} stale {} sent {} up {} times, end-of-rib {}, faults {}, hold {:?}",
        status.peer,
        status.asn,
        status.state,
        status.prefixes_received,
        status.stale,
        status.prefixes_sent,
        status.established_count,
        status.end_of_rib,
        status.faults,
        status.hold_time.map(HoldTime::seconds),
    )
}

pub(crate) fn words_of_messages(mut bytes: &[u8], negotiated: Negotiated) -> Vec<String> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (message, rest) = bytes.split_at(wire::frame(bytes, negotiated).unwrap().unwrap());
        let decoded = wire::decode(message, negotiated).unwrap();
        assert_eq!(decoded.faults, [], "what we send is sound");
        out.push(words_of_message(&decoded.message));
        bytes = rest;
    }
    out
}

pub(crate) fn list(prefixes: &[Nlri]) -> String {
    prefixes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

pub(crate) fn words_of_message(message: &Message) -> String {
    match message {
        Message::Open(open) => {
            let capabilities: Vec<_> = open.capabilities.iter().map(words_of_capability).collect();
            format!(
                "OPEN as={} hold={} id={} {}",
                open.asn,
                open.hold_time.seconds(),
                open.router_id,
                capabilities.join(" ")
            )
        }
        Message::Keepalive => "KEEPALIVE".to_owned(),
        Message::Notification(notification) => format!("NOTIFICATION {notification}"),
        Message::RouteRefresh { family, kind } => {
            let kind = match kind {
                RefreshKind::Request => String::new(),
                kind => format!(" {kind:?}"),
            };
            format!("ROUTE-REFRESH {}/{}{kind}", family.afi, family.safi)
        }
        Message::Update(update) if update.end_of_rib == Some(Family::IPV4_UNICAST) => "END-OF-RIB".to_owned(),
        Message::Update(update) if update.end_of_rib.is_some() => "END-OF-RIB of IPv6".to_owned(),
        Message::Update(update) => {
            let mut words = "UPDATE".to_owned();
            if !update.withdrawn.is_empty() {
                words += &format!(" withdraw {}", list(&update.withdrawn));
            }
            if let Some(attributes) = update
                .attributes
                .as_ref()
                .filter(|_| !update.announced.is_empty())
            {
                let path: Vec<String> = attributes
                    .as_path
                    .segments
                    .iter()
                    .flat_map(|segment| match segment {
                        AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers) => numbers,
                    })
                    .map(ToString::to_string)
                    .collect();
                words += &format!(
                    " announce {} via {} path [{}] pref {:?} med {:?} {:?}",
                    list(&update.announced),
                    attributes.next_hop,
                    path.join(" "),
                    attributes.local_pref,
                    attributes.med,
                    attributes.origin,
                );
                if let Some(originator) = attributes.originator_id {
                    words += &format!(" originator {originator} clusters {:?}", attributes.cluster_list);
                }
                for community in &attributes.communities {
                    words += &format!(" community {community:x}");
                }
            }
            words
        }
    }
}

pub(crate) fn words_of_capability(capability: &Capability) -> String {
    match capability {
        Capability::MultiProtocol(family) => format!("family={}/{}", family.afi, family.safi),
        Capability::RouteRefresh => "refresh".to_owned(),
        Capability::FourOctetAs(asn) => format!("as4={asn}"),
        Capability::GracefulRestart(restart) => {
            let kept = restart.families.iter().any(|&(_, kept)| kept);
            let bits = [(restart.restarted, "R"), (kept, "F"), (restart.notification, "N")];
            let bits: String = bits.iter().filter(|(set, _)| *set).map(|&(_, bit)| bit).collect();
            format!("gr={}{bits}", restart.restart_time)
        }
        Capability::EnhancedRouteRefresh => "enhanced-refresh".to_owned(),
        Capability::ExtendedMessage => "extended-message".to_owned(),
        Capability::AddPath(families) => format!("add-path={}", families.len()),
        Capability::ExtendedNextHop(families) => format!("extended-next-hop={}", families.len()),
        Capability::LongLivedGracefulRestart(families) => {
            let times: Vec<_> = families.iter().map(|of| of.stale_time.to_string()).collect();
            format!("llgr={}", times.join(","))
        }
        Capability::Unknown { code, .. } => format!("unknown={code}"),
    }
}
