//! One netlink connection, made so that silence is never taken for consent.
//!
//! The kernel does what a message asks before the send of it returns, and by then its answers wait in the receive
//! buffer: nothing is gained by sending a second batch before the first one's answers are read. Of a batch only the last
//! message asks for an acknowledgement. The kernel goes through a batch in order and always answers to what fails, so
//! that an answer to the last says of every other without one that it is done; unless the receive buffer overflowed,
//! which the kernel tells (ENOBUFS) before it hands out anything else (net/netlink/af_netlink.c, netlink_overrun).
//! What was not answered then is lost, whatever the reason.

use std::fmt;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
    NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::time::{Instant, timeout_at};

use super::decode;
use crate::dataplane::{Namespace, Refusal};
use crate::fib::Link;

/// How long the kernel may take to answer a batch, or to go on with a dump.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a dump is begun again because the table changed under it.
const DUMPS: usize = 8;

/// Bytes. The kernel's default of 212,992 holds a few hundred notifications.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Bytes in one send. More than the send buffer holds (212,992 by default) would be refused as a whole.
const SEND_LIMIT: usize = 64 << 10;

/// Bytes; the kernel keeps a datagram of a dump below 32 KiB, and fills it if it may.
const DATAGRAM: usize = 64 << 10;

/// A message to be sent: what it says, and its `NLM_F_*` beyond request and acknowledgement.
pub(super) type Request = (RouteNetlinkMessage, u16);

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Refused(Refusal),
    /// No answer came: it may have been done or not.
    Lost,
}

/// Why a dump gave nothing.
#[derive(Debug)]
pub(super) enum Interrupted {
    Refused(Refusal),
    Lost,
}

pub(super) struct Connection {
    socket: TokioSocket,
    /// Its own port: what it brings about carries it.
    port: u32,
    /// The sequence number of the last message sent.
    sequence: u32,
    output: Vec<u8>,
    input: Vec<u8>,
    /// Something was asked and not answered, perhaps because nobody waited for it.
    broken: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("sequence", &self.sequence)
            .field("sound", &self.is_sound())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection to the kernel in `namespace`. Needs a Tokio runtime.
    pub(super) fn open(namespace: &Namespace) -> io::Result<Self> {
        let mut socket = namespace.run(|| TokioSocket::new(NETLINK_ROUTE))?;
        let port = socket.socket_mut().bind_auto()?.port_number();
        socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
        enlarge(socket.socket_ref());
        // Errors need not repeat the request, but should say more than a number. Old kernels refuse: then they do not.
        let _ = socket.socket_ref().set_cap_ack(true);
        let _ = socket.socket_ref().set_ext_ack(true);
        Ok(Self {
            socket,
            port,
            sequence: 0,
            output: Vec::new(),
            input: Vec::with_capacity(DATAGRAM),
            broken: false,
        })
    }

    /// Whether it is of use for another request.
    pub(super) fn is_sound(&self) -> bool {
        !self.broken
    }

    /// The port of its socket, which nobody else can have while it is open.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// The socket, for tests that do to it what only chance does otherwise.
    #[cfg(test)]
    pub(super) fn socket(&self) -> &Socket {
        self.socket.socket_ref()
    }

    /// Sends `requests` and gives as many answers in the same order. No more than 256 at a time: if all are refused, the
    /// answers must fit into the receive buffer.
    pub(super) async fn transact(&mut self, requests: Vec<Request>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(requests.len());
        let total = requests.len();
        let mut requests = requests.into_iter().map(framed).peekable();
        while requests.peek().is_some() && self.is_sound() {
            let first = self.sequence.wrapping_add(1);
            self.output.clear();
            let mut count = 0_usize;
            while let Some(mut message) = requests.next() {
                let end = self.output.len() + aligned(&message);
                let is_last = requests
                    .peek()
                    .is_none_or(|next| end + aligned(next) > SEND_LIMIT);
                if is_last {
                    message.header.flags |= NLM_F_ACK;
                }
                self.push(message);
                count += 1;
                if is_last {
                    break;
                }
            }
            answers.extend(self.exchange(first, count).await);
        }
        answers.resize(total, Answer::Lost);
        answers
    }

    /// Sends what is in `output`, `count` messages numbered from `first`, and gives their answers.
    async fn exchange(&mut self, first: u32, count: usize) -> Vec<Answer> {
        // Should nobody wait for the end of this, later answers would not be told from these.
        self.broken = true;
        let mut refused = vec![None; count];
        let deadline = Instant::now() + PATIENCE;
        let mut last_answered = self.send().await.is_err();
        let mut is_lost = last_answered;
        while !last_answered {
            if self.receive(deadline).await.is_err() {
                is_lost = true;
                break;
            }
            let mut rest = self.input.as_slice();
            while let Some((message, tail)) = split_first(rest) {
                rest = tail;
                let Ok(NetlinkMessage {
                    header,
                    payload: NetlinkPayload::Error(error),
                    ..
                }) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
                else {
                    continue;
                };
                let place = usize::try_from(header.sequence_number.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let (Some(refused), Some(_)) = (refused.get_mut(place), error.code) {
                    *refused = Some(refusal(error.raw_code(), &error.header));
                }
                last_answered |= place == count - 1;
            }
        }
        self.broken = is_lost;
        let without = if is_lost { Answer::Lost } else { Answer::Done };
        refused
            .into_iter()
            .map(|refused| refused.map_or_else(|| without.clone(), Answer::Refused))
            .collect()
    }

    /// Puts a message behind those that wait to be sent.
    fn push(&mut self, mut message: NetlinkMessage<RouteNetlinkMessage>) {
        self.sequence = self.sequence.wrapping_add(1);
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = self.output.len();
        self.output.resize(start + aligned(&message), 0);
        if let Some(place) = self.output.get_mut(start..start + message.buffer_len()) {
            message.serialize(place);
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        let sent = self.socket.send(&self.output).await?;
        // A datagram goes whole or not at all.
        (sent == self.output.len())
            .then_some(())
            .ok_or_else(|| io::ErrorKind::WriteZero.into())
    }

    /// Reads the next datagram of the kernel into `input`.
    async fn receive(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            self.input.clear();
            // What was asked is answered by now: only what was not has to be waited for.
            let from = match self.socket.socket_ref().recv_from(&mut self.input, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let waiting = self.socket.recv_from(&mut self.input);
                    timeout_at(deadline, waiting)
                        .await
                        .map_err(|_| io::ErrorKind::TimedOut)??
                }
                read => read?.1,
            };
            // Only the kernel has port 0: what another process sends here is no answer.
            if from.port_number() == 0 {
                return Ok(());
            }
        }
    }

    /// Sends one request.
    pub(super) async fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Answer {
        self.transact(vec![(message, flags)])
            .await
            .pop()
            .unwrap_or(Answer::Lost)
    }

    /// What `keep` makes of all that the kernel answers to `message`, whole and of one moment as far as the kernel can
    /// tell.
    pub(super) async fn dump<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        keep: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Interrupted> {
        for _ in 0..DUMPS {
            if let Some(all) = self.dump_once(message.clone(), &keep).await? {
                return Ok(all);
            }
        }
        // A table that changes under every dump: the events tell what the last of them missed.
        Err(Interrupted::Refused(Refusal {
            errno: nix::errno::Errno::EINTR as i32,
            words: format!("the table changed during each of {DUMPS} dumps"),
        }))
    }

    /// The same, or None if the table changed in between (`NLM_F_DUMP_INTR`).
    async fn dump_once<T>(
        &mut self,
        message: RouteNetlinkMessage,
        keep: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Interrupted> {
        if !self.is_sound() {
            return Err(Interrupted::Lost);
        }
        // A dump given up half-way would go on: the kernel refuses another one on the same socket (EBUSY).
        self.broken = true;
        self.output.clear();
        self.push(framed((message, NLM_F_DUMP)));
        self.send().await.map_err(|_| Interrupted::Lost)?;
        let mut all = Vec::new();
        let mut whole = true;
        loop {
            let deadline = Instant::now() + PATIENCE;
            self.receive(deadline).await.map_err(|_| Interrupted::Lost)?;
            let mut rest = self.input.as_slice();
            while let Some((message, tail)) = split_first(rest) {
                rest = tail;
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
                    tracing::debug!("a message of the kernel is of no known form");
                    continue;
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                let refused = match message.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        all.extend(keep(inner));
                        continue;
                    }
                    NetlinkPayload::Done(done) if done.code == 0 => None,
                    NetlinkPayload::Done(done) => Some(refusal(done.code, &[])),
                    NetlinkPayload::Error(error) => Some(refusal(error.raw_code(), &error.header)),
                    _ => continue,
                };
                self.broken = false;
                return match refused {
                    Some(refusal) => Err(Interrupted::Refused(refusal)),
                    None => Ok(whole.then_some(all)),
                };
            }
            // Thousands of routes are read without a wait: others must have their turn.
            tokio::task::consume_budget().await;
        }
    }

    /// All links, without their counters.
    pub(super) async fn links(&mut self) -> Result<Vec<LinkMessage>, Interrupted> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let keep = |message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        };
        self.dump(&RouteNetlinkMessage::GetLink(message), keep).await
    }

    /// The link of this name, if there is one.
    pub(super) async fn link_named(&mut self, name: &str) -> Result<Option<Link>, Interrupted> {
        Ok(self
            .links()
            .await?
            .iter()
            .filter_map(decode::link)
            .find(|link| link.name == name))
    }
}

/// Enlarges the receive buffer: beyond the system's limit where that is allowed (CAP_NET_ADMIN), else up to it.
pub(super) fn enlarge(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
}

/// The first message of a datagram, and what follows it; none at its end, or when the rest is no message.
pub(super) fn split_first(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(NetlinkBuffer::new_checked(datagram).ok()?.length()).ok()?;
    let (message, tail) = datagram.split_at_checked(length)?;
    // linux/netlink.h, NLMSG_ALIGN: the next message begins at a multiple of four.
    let padding = length.next_multiple_of(4) - length;
    Some((message, tail.get(padding..).unwrap_or_default()))
}

/// Bytes that a message takes among others (linux/netlink.h, NLMSG_ALIGN).
fn aligned(message: &NetlinkMessage<RouteNetlinkMessage>) -> usize {
    message.buffer_len().next_multiple_of(4)
}

/// A request with its header, but for what tells it from others.
pub(super) fn framed((message, flags): Request) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut framed = NetlinkMessage::from(message);
    framed.header.flags = NLM_F_REQUEST | flags;
    framed
}

/// The kernel's refusal, with its words if it gave any: after the header of the request come attributes.
pub(super) fn refusal(code: i32, rest: &[u8]) -> Refusal {
    const HEADER: usize = 16;
    // linux/netlink.h: NLMSGERR_ATTR_MSG, a string that ends in a zero byte.
    const MESSAGE: u16 = 1;
    let attributes = rest.get(HEADER..).unwrap_or_default();
    let words = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == MESSAGE)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value())
                .trim_end_matches(['\0', '.'])
                .to_owned()
        });
    Refusal {
        errno: code.saturating_abs(),
        words: words.unwrap_or_default(),
    }
}
