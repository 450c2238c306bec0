//! The daemons of others, each told the same and asked the same.

mod bird1;
mod bird2;
mod frr;
mod gobgp;
mod openbgpd;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use harness::LabError;
use harness::pair::{self, Pair};

pub(crate) use bird1::Bird1;
pub(crate) use bird2::Bird2;
pub(crate) use frr::Frr;
pub(crate) use gobgp::GoBgp;
pub(crate) use openbgpd::OpenBgpd;

/// What the daemon announces, unless it is told to stop.
pub(crate) const THEIR_BLOCK: &str = "10.65.200.0/26";
/// The same for IPv6.
pub(crate) const THEIR_BLOCK_6: &str = "fd65:c8::/122";
/// What lies behind it, outside every pool, where it is a router.
pub(crate) const OUTSIDE: &str = "203.0.113.0/24";
/// The community that it puts on its routes, where it is asked to.
pub(crate) const THEIR_COMMUNITY: (u16, u16) = (64512, 7);

/// What both are told of the session: all else is as it comes out of the box.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The agent's AS.
    pub(crate) our_asn: u32,
    /// The daemon's AS.
    pub(crate) their_asn: u32,
    /// Whether the session runs over IPv6.
    pub(crate) over_ipv6: bool,
    /// Whether it carries IPv6 routes as well.
    pub(crate) ipv6: bool,
    /// TCP MD5 (RFC 2385).
    pub(crate) password: Option<&'static str>,
    /// The password of the agent, where that is another one.
    pub(crate) our_password: Option<&'static str>,
    /// GTSM (RFC 5082): packets must come from the next hop itself.
    pub(crate) ttl_security: bool,
    /// Graceful restart (RFC 4724).
    pub(crate) graceful_restart: bool,
    /// Long-lived graceful restart (RFC 9494) behind a graceful restart of a second.
    pub(crate) long_lived: bool,
    /// The daemon is a route reflector, and the agent its client (RFC 4456).
    pub(crate) reflects: bool,
    /// The agent is a route reflector, and the daemon its client.
    pub(crate) agent_reflects: bool,
    /// ADD-PATH (RFC 7911), both ways.
    pub(crate) add_path: bool,
    /// The daemon's routes carry [`THEIR_COMMUNITY`], and the agent's one of their own.
    pub(crate) community: bool,
    /// The agent rejects routes with that community.
    pub(crate) rejects_community: bool,
    /// The daemon is no node of the cluster, but a router, and announces [`OUTSIDE`] as well.
    pub(crate) is_router: bool,
    /// The most routes that the agent takes.
    pub(crate) max_prefixes: Option<u32>,
    /// The section `bgp` of the agent's configuration, in one line; empty for none.
    pub(crate) configured: &'static str,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            our_asn: 64512,
            their_asn: 64512,
            over_ipv6: false,
            ipv6: false,
            password: None,
            our_password: None,
            ttl_security: false,
            graceful_restart: true,
            long_lived: false,
            reflects: false,
            agent_reflects: false,
            add_path: false,
            community: false,
            rejects_community: false,
            is_router: false,
            max_prefixes: None,
            configured: "",
        }
    }
}

impl Terms {
    /// The agent's end of the session.
    pub(crate) fn our_address(&self) -> IpAddr {
        if self.over_ipv6 {
            pair::OUR_ADDRESS_6.into()
        } else {
            pair::OUR_ADDRESS.into()
        }
    }

    /// The daemon's end of the session.
    pub(crate) fn their_address(&self) -> IpAddr {
        if self.over_ipv6 {
            pair::THEIR_ADDRESS_6.into()
        } else {
            pair::THEIR_ADDRESS.into()
        }
    }

    /// The IPv4 destinations that the daemon announces.
    pub(crate) fn announced(&self) -> &'static [&'static str] {
        if self.is_router {
            &[THEIR_BLOCK, OUTSIDE]
        } else {
            &[THEIR_BLOCK]
        }
    }

    /// The daemon's BGP Identifier.
    pub(crate) fn their_router_id(&self) -> Ipv4Addr {
        pair::THEIR_ADDRESS
    }
}

/// A route that a daemon has learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learned {
    /// Its next hop, as the daemon writes it.
    pub(crate) next_hop: String,
    /// Its AS_PATH.
    pub(crate) as_path: Vec<u32>,
    /// Its communities, as `AS:VALUE`.
    pub(crate) communities: Vec<String>,
}

/// What every daemon can be told and asked.
pub(crate) trait Peer {
    /// Name and version, as it gives them itself.
    fn version(&self) -> Result<String, LabError>;

    /// Whether the session is Established; else the state that it is in.
    fn state(&self) -> Result<Result<(), String>, LabError>;

    /// What it has learned from the agent, by prefix.
    fn learned(&self) -> Result<BTreeMap<String, Learned>, LabError>;

    /// Stops, or starts again, to announce [`Terms::announced`] (and [`THEIR_BLOCK_6`] where the session carries it).
    fn announce(&mut self, announce: bool) -> Result<(), LabError>;

    /// Asks the agent for all its routes once more (RFC 2918).
    fn refresh(&mut self) -> Result<(), LabError>;

    /// Dies without a word, as a crash would have it.
    fn die(&mut self) -> Result<(), LabError>;

    /// Dies so, and is started again.
    fn crash(&mut self, pair: &Pair) -> Result<(), LabError>;

    /// The end of its log.
    fn last_words(&self) -> String;
}

/// Starts a daemon by its configuration.
pub(crate) type Start = fn(&Pair, &Terms) -> Result<Box<dyn Peer>, LabError>;

/// A daemon as a test needs to know it.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// As the names of tests have it.
    pub(crate) name: &'static str,
    /// The program, which must be on this machine.
    pub(crate) program: &'static str,
    /// How to start it.
    pub(crate) start: Start,
}

/// All of them.
pub(crate) const ALL: [Kind; 5] = [
    Kind {
        name: "bird_1",
        program: bird1::PROGRAM,
        start: |pair, terms| Ok(Box::new(Bird1::start(pair, terms)?)),
    },
    Kind {
        name: "bird_2",
        program: "/usr/sbin/bird",
        start: |pair, terms| Ok(Box::new(Bird2::start(pair, terms)?)),
    },
    Kind {
        name: "frr",
        program: "/usr/lib/frr/bgpd",
        start: |pair, terms| Ok(Box::new(Frr::start(pair, terms)?)),
    },
    Kind {
        name: "gobgp",
        program: "/usr/bin/gobgpd",
        start: |pair, terms| Ok(Box::new(GoBgp::start(pair, terms)?)),
    },
    Kind {
        name: "openbgpd",
        program: "/usr/sbin/bgpd",
        start: |pair, terms| Ok(Box::new(OpenBgpd::start(pair, terms)?)),
    },
];

/// Writes a daemon's configuration.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), LabError> {
    std::fs::write(path, text).map_err(|source| LabError::Io {
        operation: format!("write {}", path.display()),
        source,
    })
}

/// The end of a log, for an error.
fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A command with these arguments.
fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Reads what a daemon says of itself in JSON.
fn json(what: &str, text: &str) -> Result<serde_json::Value, LabError> {
    serde_json::from_str(text).map_err(|error| LabError::Answer {
        what: what.to_owned(),
        reason: error.to_string(),
        text: text.to_owned(),
    })
}
