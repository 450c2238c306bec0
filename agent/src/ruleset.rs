//! The packet filters of a host, whoever wrote them, as values; and what would become of a packet in them.
//!
//! Pure. A rule may look at what is not known here (marks, connections, sets of other programs): then it may match or not,
//! and what becomes of the packet is not certain from there on. Only what is certain is called lost.

use std::fmt;
use std::net::Ipv4Addr;

/// So many rules are gone through for one packet.
const MOST_STEPS: usize = 100_000;

/// So deep chains may call each other, as the kernel has it (`NFT_JUMP_STACK_SIZE`).
const MOST_DEPTH: usize = 16;

/// Who keeps the rules in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// nf_tables, which newer iptables write as well.
    Nftables,
    /// ip_tables, the older kernel side of iptables.
    Iptables,
}

/// Where in the kernel a chain is called (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// All that comes in.
    Prerouting,
    /// What is for this host.
    Input,
    /// What is for others.
    Forward,
    /// What this host sends.
    Output,
    /// All that goes out.
    Postrouting,
}

impl Hook {
    /// By its number in the kernel.
    #[must_use]
    pub fn of(number: u32) -> Option<Self> {
        let all = [
            Self::Prerouting,
            Self::Input,
            Self::Forward,
            Self::Output,
            Self::Postrouting,
        ];
        all.get(usize::try_from(number).ok()?).copied()
    }
}

/// All chains of the host that look at IPv4 packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// In any order.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Who keeps it.
    pub program: Program,
    /// `ip` or `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where the kernel calls it; none for one that only other chains call.
    pub base: Option<Base>,
    /// Its rules, in their order.
    pub rules: Vec<Rule>,
}

/// What a chain that the kernel calls has besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where.
    pub hook: Hook,
    /// The lower is called first.
    pub priority: i32,
    /// What no rule decides is dropped.
    pub drops: bool,
    /// Packets that no rule decided, where they are counted.
    pub packets: Option<u64>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What names it: the handle of nf_tables, or its number in the chain from 1.
    pub handle: u64,
    /// All must hold.
    pub matches: Vec<Match>,
    /// Packets that reached its counter, where it has one.
    pub packets: Option<u64>,
    /// What it does then.
    pub action: Action,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The next rule decides.
    Continue,
    /// The packet passes this base chain.
    Accept,
    /// It is dropped without a word.
    Drop,
    /// It is dropped, and its sender is told.
    Reject,
    /// Another chain decides, and after it the next rule.
    Jump(String),
    /// Another chain decides.
    Goto(String),
    /// The calling chain decides, or the policy.
    Return,
    /// Something else, after which the packet may have been accepted.
    Unknown,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Octets of the IPv4 header from here on.
    Network(usize),
    /// Octets of the header behind it from here on.
    Transport(usize),
    /// The name of the link it came in on, with zeros behind.
    Input,
    /// The name of the link it goes out on.
    Output,
    /// The protocol, one octet.
    Protocol,
    /// The family, one octet: 2.
    Family,
    /// The state of its connection as bits, four octets in the order of the host.
    Connection,
}

/// How a field must compare with a value, octet by octet from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `==`
    Equal,
    /// `!=`
    Different,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// A field, masked where there is a mask, compares so with a value.
    Compare {
        /// What is looked at.
        field: Field,
        /// Octets; empty for all ones.
        mask: Vec<u8>,
        /// How.
        is: Relation,
        /// With what; as many octets of the field count.
        value: Vec<u8>,
    },
    /// A field is in one of these ranges, ends included; or in none.
    Among {
        /// What is looked at.
        field: Field,
        /// First and last.
        ranges: Vec<(Vec<u8>, Vec<u8>)>,
        /// In none.
        negated: bool,
    },
    /// Something that is not known here.
    Unknown,
}

/// A packet that begins a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    network: [u8; 20],
    transport: [u8; 20],
    input: Option<String>,
    output: Option<String>,
}

impl Packet {
    /// One of this protocol, between these addresses.
    #[must_use]
    pub fn new(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        let mut network = [0; 20];
        // RFC 791 §3.1: version 4, five words of header, TTL 64.
        let (s, d) = (source.octets(), destination.octets());
        network[0] = 0x45;
        network[3] = 60;
        network[8] = 64;
        network[9] = protocol;
        network[12..16].copy_from_slice(&s);
        network[16..].copy_from_slice(&d);
        Self {
            network,
            transport: [0; 20],
            input: None,
            output: None,
        }
    }

    /// The first of a TCP connection to this port.
    #[must_use]
    pub fn tcp(source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Self {
        let mut packet = Self::new(6, source, destination);
        packet.transport[..2].copy_from_slice(&49_152_u16.to_be_bytes());
        packet.transport[2..4].copy_from_slice(&port.to_be_bytes());
        // RFC 9293 §3.1: five words of header, SYN.
        packet.transport[12] = 0x50;
        packet.transport[13] = 0x02;
        packet
    }

    /// The same, coming in on this link.
    #[must_use]
    pub fn from_link(mut self, name: &str) -> Self {
        self.input = Some(name.to_owned());
        self
    }

    /// The same, going out on this link.
    #[must_use]
    pub fn to_link(mut self, name: &str) -> Self {
        self.output = Some(name.to_owned());
        self
    }

    /// `length` octets of a field, or as many as it has; none where the packet has no such.
    fn read(&self, field: Field, length: usize) -> Option<Vec<u8>> {
        /// `IFNAMSIZ`.
        const NAME: usize = 16;
        // net/netfilter/nf_conntrack_common.h: 1 << (IP_CT_NEW + 1).
        const NEW: u32 = 8;
        let name = |name: &Option<String>| {
            let mut octets = name.as_ref()?.as_bytes().to_vec();
            octets.resize(NAME, 0);
            octets.truncate(length);
            Some(octets)
        };
        let part = |of: &[u8], at: usize| Some(of.get(at..at.checked_add(length)?)?.to_vec());
        match field {
            Field::Network(at) => part(&self.network, at),
            Field::Transport(at) => part(&self.transport, at),
            Field::Input => name(&self.input),
            Field::Output => name(&self.output),
            Field::Protocol => self.network.get(9).map(|protocol| vec![*protocol]),
            Field::Family => Some(vec![2]),
            Field::Connection => Some(NEW.to_ne_bytes().to_vec()),
        }
    }
}

impl Match {
    /// Whether it holds; none where that is not known.
    fn holds(&self, packet: &Packet) -> Option<bool> {
        match self {
            Match::Unknown => None,
            Match::Compare {
                field,
                mask,
                is,
                value,
            } => {
                let mut found = packet.read(*field, value.len().max(mask.len()))?;
                if found.len() < value.len() {
                    return None;
                }
                if !mask.is_empty() {
                    let masked = found.iter().zip(mask).map(|(octet, mask)| octet & mask);
                    found = masked.collect();
                }
                found.truncate(value.len());
                Some(match is {
                    Relation::Equal => found == *value,
                    Relation::Different => found != *value,
                    Relation::Less => found < *value,
                    Relation::LessOrEqual => found <= *value,
                    Relation::Greater => found > *value,
                    Relation::GreaterOrEqual => found >= *value,
                })
            }
            Match::Among {
                field,
                ranges,
                negated,
            } => {
                let length = ranges.first().map_or(0, |(first, _)| first.len());
                let found = packet.read(*field, length)?;
                if found.len() != length {
                    return None;
                }
                let mut inside = ranges
                    .iter()
                    .filter(|(first, last)| *first <= found && found <= *last);
                Some(inside.next().is_some() != *negated)
            }
        }
    }
}

impl Rule {
    /// Whether all its conditions hold; none where that is not known.
    fn holds(&self, packet: &Packet) -> Option<bool> {
        let mut all = Some(true);
        for one in &self.matches {
            match one.holds(packet) {
                Some(false) => return Some(false),
                Some(true) => {}
                None => all = None,
            }
        }
        all
    }
}

/// A rule or a policy that drops.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Who keeps it.
    pub program: Program,
    /// The family, the table and the chain.
    pub chain: (&'static str, String, String),
    /// The chain that the kernel called, by which it was reached.
    pub base: String,
    /// What names the rule; none for the policy.
    pub handle: Option<u64>,
    /// It tells the sender.
    pub rejects: bool,
    /// Packets dropped so far, where they are counted.
    pub packets: Option<u64>,
}

impl Place {
    /// Whether the other is the same, seen at another time.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        (self.program, &self.chain, self.handle) == (other.program, &other.chain, other.handle)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, table, chain) = &self.chain;
        match self.program {
            Program::Nftables => write!(f, "nftables, table {family} {table}, chain {chain}, ")?,
            Program::Iptables => write!(f, "iptables (legacy), table {table}, chain {chain}, ")?,
        }
        let verb = if self.rejects { "reject" } else { "drop" };
        match (self.handle, self.program) {
            (None, _) => write!(f, "policy {verb}"),
            (Some(handle), Program::Nftables) => write!(f, "rule with handle {handle}: {verb}"),
            (Some(handle), Program::Iptables) => write!(f, "rule {handle}: {verb}"),
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// It is dropped here, certainly.
    pub dropped: Option<Place>,
    /// It may be dropped here.
    pub perhaps: Vec<Place>,
}

impl Ruleset {
    /// What becomes of `packet` on its way through these hooks, one after the other.
    #[must_use]
    pub fn fate(&self, packet: &Packet, hooks: &[Hook]) -> Fate {
        let mut walk = Walk {
            ruleset: self,
            packet,
            fate: Fate::default(),
            base: "",
            certain: true,
            steps: MOST_STEPS,
        };
        for hook in hooks {
            let mut bases: Vec<(&Chain, &Base)> = self
                .chains
                .iter()
                .filter_map(|chain| Some((chain, chain.base.as_ref()?)))
                .filter(|(_, base)| base.hook == *hook)
                .collect();
            bases.sort_by_key(|(_, base)| base.priority);
            for (chain, base) in bases {
                if walk.base_chain(chain, base) {
                    return walk.fate;
                }
            }
        }
        walk.fate
    }
}

/// How a chain was left.
enum Left {
    /// At its end, or by `return`.
    Back,
    /// The packet is accepted, certainly.
    Accepted,
    /// The packet is gone, certainly.
    Gone,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    fate: Fate,
    base: &'a str,
    /// The packet has certainly come here: no rule of this base chain may have accepted it.
    certain: bool,
    steps: usize,
}

impl<'a> Walk<'a> {
    /// Whether the packet is gone.
    fn base_chain(&mut self, chain: &'a Chain, base: &Base) -> bool {
        self.base = &chain.name;
        // What may have been dropped before is, if not, still to pass this one.
        self.certain = true;
        match self.chain(chain, 0) {
            Left::Gone => true,
            Left::Accepted => false,
            Left::Back => base.drops && self.drop(chain, None, false, base.packets, true),
        }
    }

    fn chain(&mut self, chain: &'a Chain, depth: usize) -> Left {
        for rule in &chain.rules {
            let Some(steps) = self.steps.checked_sub(1) else {
                self.certain = false;
                return Left::Back;
            };
            self.steps = steps;
            let holds = rule.holds(self.packet);
            if holds == Some(false) {
                continue;
            }
            if let Some(left) = self.act(chain, rule, holds.is_some(), depth) {
                return left;
            }
        }
        Left::Back
    }

    /// How the chain is left by a rule that matches (`surely`), or may; none where the next rule decides.
    fn act(&mut self, chain: &'a Chain, rule: &'a Rule, surely: bool, depth: usize) -> Option<Left> {
        match &rule.action {
            Action::Continue => None,
            Action::Accept if surely && self.certain => Some(Left::Accepted),
            Action::Drop | Action::Reject => {
                let rejects = rule.action == Action::Reject;
                let gone = self.drop(chain, Some(rule.handle), rejects, rule.packets, surely);
                // What may be accepted by now is not looked at any further once this one matches.
                (gone || surely).then_some(if gone { Left::Gone } else { Left::Accepted })
            }
            Action::Return if surely => Some(Left::Back),
            // It may have been accepted, or gone back: what follows here is not certain, nor is what follows there.
            Action::Accept | Action::Unknown | Action::Return => {
                self.certain = false;
                None
            }
            Action::Jump(name) | Action::Goto(name) => {
                let goes = matches!(rule.action, Action::Goto(_));
                let called = self.ruleset.chains.iter().find(|other| {
                    other.name == *name
                        && (other.program, other.family, &other.table)
                            == (chain.program, chain.family, &chain.table)
                });
                let Some(called) = called.filter(|_| depth < MOST_DEPTH) else {
                    self.certain = false;
                    return None;
                };
                let before = self.certain;
                self.certain &= surely;
                let left = self.chain(called, depth + 1);
                if !surely {
                    // What happened there may have happened; what follows here may be reached.
                    let mut steps = self.steps;
                    self.certain = before && !self.may_accept(called, 0, &mut steps);
                    self.steps = steps;
                    return None;
                }
                match left {
                    Left::Back if goes => Some(Left::Back),
                    Left::Back => None,
                    other => Some(other),
                }
            }
        }
    }

    /// Whether a rule of the chain, or of those that it calls, may take the packet out of this base chain.
    fn may_accept(&self, chain: &Chain, depth: usize, steps: &mut usize) -> bool {
        chain.rules.iter().any(|rule| match &rule.action {
            _ if *steps == 0 => true,
            _ if rule.holds(self.packet) == Some(false) => {
                *steps -= 1;
                false
            }
            Action::Accept | Action::Unknown => true,
            Action::Jump(name) | Action::Goto(name) => {
                let called = self.ruleset.chains.iter().find(|other| {
                    other.name == *name && (other.family, &other.table) == (chain.family, &chain.table)
                });
                *steps -= 1;
                called.is_none_or(|called| depth >= MOST_DEPTH || self.may_accept(called, depth + 1, steps))
            }
            _ => false,
        })
    }

    /// Notes a drop; whether it is certain.
    fn drop(
        &mut self,
        chain: &Chain,
        handle: Option<u64>,
        rejects: bool,
        packets: Option<u64>,
        surely: bool,
    ) -> bool {
        let place = Place {
            program: chain.program,
            chain: (chain.family, chain.table.clone(), chain.name.clone()),
            base: self.base.to_owned(),
            handle,
            rejects,
            packets,
        };
        let gone = surely && self.certain;
        if gone {
            self.fate.dropped = Some(place);
        } else {
            self.fate.perhaps.push(place);
        }
        gone
    }
}

#[cfg(test)]
mod tests;
