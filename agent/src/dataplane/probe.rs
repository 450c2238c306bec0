//! Marked packets: sent a few at a time, and counted wherever they are seen on this host.
//!
//! A probe is an echo request (RFC 792) with a token in its data, which the answer carries back. It is sent from a pod's
//! address by this host itself, so that it takes the way of the pod's own packets from the routing on; the answer is made by
//! the other pod's kernel, and takes the whole way back. The capture sees each of them on every link that it passes, before
//! packet filters on the way in and after them on the way out (packet(7)).

mod packet;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::net::if_::if_indextoname;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::time::sleep;

use crate::uapi::{self, ReceivedPacket};

pub use packet::{Parsed, Token, parse};

/// So many kinds of sightings are told apart; what is beyond is not counted.
const MOST_KINDS: usize = 256;

/// How often it is looked whether packets wait; the kernel keeps some hundreds meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// The largest packet that is looked into, in octets: the headers are all that counts.
const LOOKED_AT: usize = 2048;

/// What a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The echo request.
    Request,
    /// The answer to it.
    Answer,
}

/// Where and how probes were seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sighting {
    /// The link's name.
    pub link: String,
    /// It went out there; else it came in.
    pub outgoing: bool,
    /// Source and destination of the outer header, where it was encapsulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Request or answer.
    pub kind: Kind,
    /// Octets, without the outer header.
    pub size: u16,
}

/// How often each was seen.
pub type Sightings = BTreeMap<Sighting, u32>;

/// Sees the probes with one token on all links of this network namespace, from its making on.
pub struct Capture {
    socket: Socket,
    token: Token,
    seen: BTreeMap<(u32, Sighting), u32>,
}

impl Capture {
    /// Begins.
    ///
    /// # Errors
    /// When packet sockets are not permitted (CAP_NET_RAW).
    pub fn begin(token: Token) -> io::Result<Self> {
        // Without a protocol it hears nothing until it is bound, with the filter in its place.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.attach_filter(&filter())?;
        socket.set_nonblocking(true)?;
        uapi::bind_to_all_links(&socket)?;
        Ok(Self {
            socket,
            token,
            seen: BTreeMap::new(),
        })
    }

    /// Counts, for ever. Nothing is lost if it is dropped and called again.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn count(&mut self) -> io::Result<()> {
        loop {
            self.take_waiting()?;
            // To be woken by the socket takes unsafe code of Tokio's callers; it counts for seconds, and keeps what waits.
            sleep(LOOK).await;
        }
    }

    /// Counts what the kernel has for us.
    fn take_waiting(&mut self) -> io::Result<()> {
        let mut octets = vec![0; LOOKED_AT];
        loop {
            let received = match uapi::receive_packet(&self.socket, &mut octets) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // A link that goes down is told to the socket; it hears the others all the same.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => continue,
                received => received?,
            };
            self.take(&received, octets.get(..received.length).unwrap_or_default());
        }
    }

    fn take(&mut self, received: &ReceivedPacket, octets: &[u8]) {
        let Some(parsed) = parse(octets).filter(|parsed| parsed.token == self.token) else {
            return;
        };
        let sighting = Sighting {
            // Its name is asked for once, at the end.
            link: String::new(),
            outgoing: received.outgoing,
            outer: parsed.outer,
            kind: parsed.kind,
            size: parsed.size,
        };
        let key = (received.link, sighting);
        if self.seen.len() < MOST_KINDS || self.seen.contains_key(&key) {
            let count = self.seen.entry(key).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// How often all that matches was seen so far.
    #[must_use]
    pub fn so_far(&self, kind: Kind, size: u16) -> u32 {
        let matching = self
            .seen
            .iter()
            .filter(|((_, seen), _)| (seen.kind, seen.size) == (kind, size));
        matching.map(|(_, count)| *count).max().unwrap_or(0)
    }

    /// What was seen.
    #[must_use]
    pub fn end(mut self) -> Sightings {
        // An error of the socket ends the counting, as anything else does.
        let _ = self.take_waiting();
        let mut all = Sightings::new();
        for ((link, sighting), count) in self.seen {
            let name = if_indextoname(link).ok().and_then(|name| name.into_string().ok());
            let sighting = Sighting {
                link: name.unwrap_or_else(|| format!("if{link}")),
                ..sighting
            };
            *all.entry(sighting).or_default() += count;
        }
        all
    }
}

/// A program of BPF (linux/filter.h) that lets through echo packets with our mark, encapsulated in IPv4 or not: the kernel
/// shows nobody else's to us.
fn filter() -> [SockFilter; 10] {
    // linux/bpf_common.h: BPF_LDX|BPF_B|BPF_MSH, BPF_LD|BPF_B|BPF_ABS, BPF_LD|BPF_W|BPF_IND, BPF_JMP|BPF_JEQ|BPF_K,
    // BPF_JMP|BPF_JA, BPF_RET|BPF_K. A jump is over so many instructions.
    const HEADER: u16 = 0xb1;
    const BYTE: u16 = 0x30;
    const WORD: u16 = 0x40;
    const EQUAL: u16 = 0x15;
    const JUMP: u16 = 0x05;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(HEADER, 0, 0, 0),
        SockFilter::new(BYTE, 0, 0, 9),
        // IPPROTO_ICMP, IPPROTO_IPIP.
        SockFilter::new(EQUAL, 3, 0, 1),
        SockFilter::new(EQUAL, 0, 4, 4),
        // The mark is 8 octets behind the header, or behind another one of 20.
        SockFilter::new(WORD, 0, 0, 28),
        SockFilter::new(JUMP, 0, 0, 1),
        SockFilter::new(WORD, 0, 0, 8),
        SockFilter::new(EQUAL, 1, 0, packet::MARK),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// Sends probes.
pub struct Sender {
    socket: Socket,
    token: Token,
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

impl Sender {
    /// Of probes with this token from an address to another. The source need not be this host's.
    ///
    /// # Errors
    /// When raw sockets are not permitted (CAP_NET_RAW).
    pub fn new(token: Token, source: Ipv4Addr, destination: Ipv4Addr) -> io::Result<Self> {
        // IPPROTO_RAW: the headers are given whole (raw(7)).
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        Ok(Self {
            socket,
            token,
            source,
            destination,
        })
    }

    /// Sends one of `size` octets that must not be cut in pieces, with this number in it.
    ///
    /// # Errors
    /// When there is no way there, it is too large for it, or a packet filter refuses it.
    pub fn send(&self, size: u16, number: u16) -> io::Result<()> {
        let octets = packet::request(self.token, self.source, self.destination, size, number);
        let to = SocketAddr::from((self.destination, 0)).into();
        self.socket.send_to(&octets, &to).map(drop)
    }
}
