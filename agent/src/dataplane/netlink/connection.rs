//! One netlink connection, made so that silence is never taken for consent.
//!
//! netlink-proto ends the stream of answers in the same way when all is acknowledged and when its task is gone, and
//! loses acknowledgements without a word when the receive buffer overflows. Here every acknowledgement is passed on and
//! counted by its sequence number: what was not answered is lost, whatever the reason.

use std::fmt;
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlaBuffer,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_proto::{ConnectionHandle, new_connection};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::decode;
use crate::dataplane::{Namespace, Refusal};
use crate::fib::Link;

/// How long the kernel may take to answer a batch, or to go on with a dump.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a dump is begun again because the table changed under it.
const DUMPS: usize = 8;

/// Bytes. The kernel's default of 212,992 holds a few hundred notifications.
const RECEIVE_BUFFER: usize = 8 << 20;

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
    handle: ConnectionHandle<RouteNetlinkMessage>,
    unsolicited: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    pub(super) task: JoinHandle<()>,
    // The library's count of the messages it has sent, which it uses as their sequence numbers.
    sent: u32,
    broken: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("sent", &self.sent)
            .field("sound", &self.is_sound())
            .finish()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// A connection to the kernel in `namespace`. Needs a Tokio runtime.
    pub(super) fn open(namespace: &Namespace) -> io::Result<Self> {
        let (mut connection, handle, unsolicited) =
            namespace.run(|| new_connection::<RouteNetlinkMessage>(NETLINK_ROUTE))?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_ref();
        enlarge(socket);
        // Errors need not repeat the request, but should say more than a number. Old kernels refuse: then they do not.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Self {
            handle,
            unsolicited: unsolicited.map(|(message, _)| message).boxed(),
            task: tokio::spawn(connection),
            sent: 0,
            broken: false,
        })
    }

    /// Whether it is of use for another request.
    pub(super) fn is_sound(&self) -> bool {
        !self.broken && !self.task.is_finished()
    }

    /// Sends `requests` at once and gives as many answers in the same order. No more than 256 at a time: their
    /// acknowledgements must fit into the receive buffer.
    pub(super) async fn transact(&mut self, requests: Vec<Request>) -> Vec<Answer> {
        let mut answers = vec![Answer::Lost; requests.len()];
        // The library sends one batch a wake-up, and an empty one has no answer that would wake it for the next.
        if answers.is_empty() {
            return answers;
        }
        let messages: Vec<_> = requests
            .into_iter()
            .map(|(message, flags)| framed(message, flags | NLM_F_ACK))
            .collect();
        let first = self.sent.wrapping_add(1);
        // A batch holds at most 256 messages.
        self.sent = self
            .sent
            .wrapping_add(u32::try_from(messages.len()).unwrap_or(u32::MAX));
        let Ok(stream) = self.handle.request_batch(messages, SocketAddr::new(0, 0)) else {
            self.broken = true;
            return answers;
        };
        let mut stream = pin!(stream);
        let deadline = Instant::now() + PATIENCE;
        let mut open = answers.len();
        while open > 0 {
            let message = tokio::select! {
                biased;
                message = timeout_at(deadline, stream.next()) => message.ok().flatten(),
                message = self.unsolicited.next() => match message {
                    // The receive buffer overflowed: acknowledgements are gone.
                    Some(message) if matches!(message.payload, NetlinkPayload::Overrun(_)) => None,
                    Some(_) => continue,
                    None => None,
                },
            };
            let Some(NetlinkMessage {
                header,
                payload: NetlinkPayload::Error(error),
                ..
            }) = message
            else {
                break;
            };
            let place = usize::try_from(header.sequence_number.wrapping_sub(first)).ok();
            let Some(answer) = place.and_then(|place| answers.get_mut(place)) else {
                break;
            };
            *answer = match error.code {
                None => Answer::Done,
                Some(_) => Answer::Refused(refusal(error.raw_code(), &error.header)),
            };
            open -= 1;
        }
        self.broken |= open > 0;
        answers
    }

    /// Sends one request.
    pub(super) async fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Answer {
        self.transact(vec![(message, flags)])
            .await
            .pop()
            .unwrap_or(Answer::Lost)
    }

    /// All that the kernel answers to `message`, whole and of one moment as far as the kernel can tell.
    pub(super) async fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Interrupted> {
        for _ in 0..DUMPS {
            if let Some(all) = self.dump_once(message.clone()).await.inspect_err(|why| {
                self.broken |= matches!(why, Interrupted::Lost);
            })? {
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
    async fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Interrupted> {
        self.sent = self.sent.wrapping_add(1);
        let stream = self
            .handle
            .request(framed(message, NLM_F_DUMP), SocketAddr::new(0, 0))
            .map_err(|_| Interrupted::Lost)?;
        let mut stream = pin!(stream);
        let mut all = Vec::new();
        let mut whole = true;
        loop {
            let Ok(Some(message)) = timeout(PATIENCE, stream.next()).await else {
                return Err(Interrupted::Lost);
            };
            whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => all.push(inner),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(whole.then_some(all)),
                NetlinkPayload::Done(done) => return Err(Interrupted::Refused(refusal(done.code, &[]))),
                NetlinkPayload::Error(error) => {
                    return Err(Interrupted::Refused(refusal(error.raw_code(), &error.header)));
                }
                _ => {}
            }
        }
    }

    /// All links, without their counters.
    pub(super) async fn links(&mut self) -> Result<Vec<LinkMessage>, Interrupted> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let all = self.dump(&RouteNetlinkMessage::GetLink(message)).await?;
        Ok(all
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .collect())
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

fn framed(message: RouteNetlinkMessage, flags: u16) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut framed = NetlinkMessage::from(message);
    framed.header.flags = NLM_F_REQUEST | flags;
    framed
}

/// The kernel's refusal, with its words if it gave any: after the header of the request come attributes.
fn refusal(code: i32, rest: &[u8]) -> Refusal {
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
