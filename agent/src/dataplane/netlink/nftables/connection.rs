//! A netlink socket to nf_tables: transactions and questions.

use std::io;
use std::time::Duration;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::time::timeout;

use super::super::connection::enlarge;
use super::message::{BATCH, Message, append_batch, flag};
use crate::dataplane::{DataplaneError, Namespace, Refusal};

/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a dump is begun again because the rules changed under it.
const DUMPS: usize = 8;

/// Bytes, up to the system's limit: a transaction is one datagram. The kernel's default of 212,992 holds that of some
/// ten thousand nodes.
const SEND_BUFFER: usize = 8 << 20;

/// Bytes; the kernel keeps a datagram below 32 KiB.
const DATAGRAM: usize = 64 << 10;

/// The header of nf_tables' messages after that of netlink (struct nfgenmsg).
const NFGENMSG: usize = 4;

pub(super) struct Connection {
    socket: TokioSocket,
    sequence: u32,
    pub(super) port: u32,
}

/// One answer of the kernel.
struct Answer {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: Vec<u8>,
}

impl Connection {
    /// A connection in `namespace`, that hears of every `groups` as well. Needs a Tokio runtime.
    pub(super) fn open(namespace: &Namespace, groups: &[u32]) -> io::Result<Self> {
        let mut socket = namespace.run(|| TokioSocket::new(NETLINK_NETFILTER))?;
        enlarge(socket.socket_ref());
        let _ = setsockopt(socket.socket_ref(), sockopt::SndBuf, &SEND_BUFFER);
        let port = socket.socket_mut().bind_auto()?.port_number();
        for group in groups {
            socket.socket_ref().add_membership(*group)?;
        }
        let _ = socket.socket_ref().set_cap_ack(true);
        Ok(Self {
            socket,
            sequence: 0,
            port,
        })
    }

    /// Sends `messages` as one transaction: all of them are done at one moment, or none.
    pub(super) async fn transact(&mut self, messages: &[Message]) -> Result<(), DataplaneError> {
        let mut bytes = Vec::new();
        let begin = self.next();
        append_batch(&mut bytes, BATCH.0, begin);
        for (nth, message) in messages.iter().enumerate() {
            let acknowledged = if nth + 1 == messages.len() { flag::ACK } else { 0 };
            let sequence = self.next();
            message.append_to(&mut bytes, flag::REQUEST | acknowledged, sequence);
        }
        let last = self.sequence;
        let end = self.next();
        append_batch(&mut bytes, BATCH.1, end);
        let operation = "change the nftables table ip culvert";
        self.send(&bytes, operation).await?;
        loop {
            for answer in self.receive(operation).await? {
                let Some(errno) = answer.error() else { continue };
                // An older request that was given up may still be answered.
                let place = answer.sequence.wrapping_sub(begin);
                if place > end.wrapping_sub(begin) {
                    continue;
                }
                if errno != 0 {
                    let message = usize::try_from(place)
                        .ok()
                        .and_then(|place| messages.get(place.checked_sub(1)?));
                    let operation = message.map_or(operation, |message| &message.purpose);
                    return Err(refused(operation, errno));
                }
                // Errors are told in the order of the messages: the last one's yes is the yes for all.
                if answer.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Asks for one object: its attributes, or none if there is no such thing.
    pub(super) async fn get(&mut self, message: &Message) -> Result<Option<Vec<u8>>, DataplaneError> {
        let sequence = self.ask(message, 0).await?;
        loop {
            for answer in self.receive(&message.purpose).await? {
                if answer.sequence != sequence {
                    continue;
                }
                match answer.error() {
                    None => return Ok(Some(answer.attributes())),
                    Some(errno) if errno == Errno::ENOENT as i32 => return Ok(None),
                    Some(errno) => return Err(refused(&message.purpose, errno)),
                }
            }
        }
    }

    /// Asks for all objects of a kind, whole and of one moment; none if what holds them is not there.
    pub(super) async fn dump(&mut self, message: &Message) -> Result<Option<Vec<Vec<u8>>>, DataplaneError> {
        for _ in 0..DUMPS {
            let Some((all, whole)) = self.dump_once(message).await? else {
                return Ok(None);
            };
            if whole {
                return Ok(Some(all));
            }
        }
        Err(refused(&message.purpose, Errno::EINTR as i32))
    }

    async fn dump_once(&mut self, message: &Message) -> Result<Option<(Vec<Vec<u8>>, bool)>, DataplaneError> {
        // linux/netlink.h.
        const DONE: u16 = 3;
        let sequence = self.ask(message, flag::DUMP).await?;
        let (mut all, mut whole) = (Vec::new(), true);
        loop {
            for answer in self.receive(&message.purpose).await? {
                if answer.sequence != sequence {
                    continue;
                }
                whole &= answer.flags & flag::DUMP_INTERRUPTED == 0;
                if answer.kind == DONE {
                    return Ok(Some((all, whole)));
                }
                match answer.error() {
                    None => all.push(answer.attributes()),
                    Some(errno) if errno == Errno::ENOENT as i32 => return Ok(None),
                    Some(errno) => return Err(refused(&message.purpose, errno)),
                }
            }
        }
    }

    async fn ask(&mut self, message: &Message, flags: u16) -> Result<u32, DataplaneError> {
        let sequence = self.next();
        let mut bytes = Vec::new();
        message.append_to(&mut bytes, flag::REQUEST | flags, sequence);
        self.send(&bytes, &message.purpose).await?;
        Ok(sequence)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    async fn send(&mut self, bytes: &[u8], operation: &str) -> Result<(), DataplaneError> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0)).await;
        sent.map(|_| ())
            .map_err(|why| DataplaneError::new(operation, why))
    }

    async fn receive(&mut self, operation: &str) -> Result<Vec<Answer>, DataplaneError> {
        match timeout(PATIENCE, self.read()).await {
            Ok(Ok(bytes)) => Ok(answers(&bytes).collect()),
            Ok(Err(why)) => Err(DataplaneError::new(operation, why)),
            Err(_) => Err(DataplaneError::lost(operation)),
        }
    }

    /// The next datagram of the kernel.
    pub(super) async fn read(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let mut bytes = Vec::with_capacity(DATAGRAM);
            // Only the kernel has port 0: what another process sends here is no answer.
            if self.socket.recv_from(&mut bytes).await?.port_number() == 0 {
                return Ok(bytes);
            }
        }
    }
}

impl Answer {
    /// The error number of an acknowledgement (zero for yes); none if this is something else.
    fn error(&self) -> Option<i32> {
        // linux/netlink.h: NLMSG_ERROR, a number in the machine's order, negative.
        const ERROR: u16 = 2;
        let number = self.payload.first_chunk().copied();
        (self.kind == ERROR).then(|| {
            number
                .map_or(Errno::EPROTO as i32, i32::from_ne_bytes)
                .saturating_abs()
        })
    }

    fn attributes(mut self) -> Vec<u8> {
        self.payload.drain(..NFGENMSG.min(self.payload.len()));
        self.payload
    }
}

/// The messages of a datagram.
fn answers(bytes: &[u8]) -> impl Iterator<Item = Answer> {
    messages(bytes).map(|message| Answer {
        kind: message.message_type(),
        flags: message.flags(),
        sequence: message.sequence_number(),
        payload: message.payload().to_vec(),
    })
}

/// The messages of a datagram, until one is not whole.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(message.length()).ok()?.next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        Some(message)
    })
}

fn refused(operation: &str, errno: i32) -> DataplaneError {
    let words = match Errno::from_raw(errno) {
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
            "this kernel has no nf_tables for IPv4: load or build the module nf_tables"
        }
        Errno::ENOENT => {
            "a part of nf_tables is missing: load or build nft_fib_ipv4, nft_masq and nft_chain_nat"
        }
        Errno::EPERM => "the agent needs CAP_NET_ADMIN in this network namespace",
        _ => "",
    };
    let words = words.to_owned();
    DataplaneError::refused(operation, Refusal { errno, words })
}
