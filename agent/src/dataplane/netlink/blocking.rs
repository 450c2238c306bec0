//! A netlink connection for who does nothing else until the kernel has answered: the plugin, which needs no runtime for it.
//!
//! What is said in [`super::connection`] of batches holds here as well: of one only the last message is acknowledged, and
//! what fails answers by itself.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::connection::{Request, append, framed, refusal, split_first};
use crate::dataplane::{DataplaneError, Refusal};

/// How long the kernel may take to answer, in seconds. It has done what was asked when the send returns.
const PATIENCE: i64 = 5;

/// Bytes of the largest answer: a link with all that it tells.
const DATAGRAM: usize = 16 << 10;

/// A connection to the kernel.
pub(super) struct Blocking {
    socket: Socket,
    /// The sequence number of the last message sent.
    sequence: u32,
}

/// A request, and what is asked in words.
pub(super) type Named = (String, Request);

impl Blocking {
    /// A connection in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        // Errors need not repeat the request, but should say more than a number. Old kernels refuse: then they do not.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Has the kernel do `requests`, in one datagram and in their order, and gives what it answered beside
    /// acknowledgements. One that fails does not hold back those after it.
    ///
    /// # Errors
    /// The first that the kernel refused, or that the connection is gone.
    pub(super) fn transact(
        &mut self,
        requests: Vec<Named>,
    ) -> Result<Vec<RouteNetlinkMessage>, DataplaneError> {
        let first = self.sequence.wrapping_add(1);
        let count = requests.len();
        let mut output = Vec::new();
        let mut operations = Vec::with_capacity(count);
        for (place, (operation, request)) in requests.into_iter().enumerate() {
            operations.push(operation);
            let mut message = framed(request);
            if place + 1 == count {
                message.header.flags |= NLM_F_ACK;
            }
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut output, message, self.sequence);
        }
        let mut refused = vec![None; count];
        let answers = self.exchange(&output, first, &mut refused);
        let mut refused = refused.into_iter().zip(&operations);
        let failed = refused
            .find_map(|(refused, operation)| refused.map(|why| DataplaneError::refused(operation, why)));
        match (failed, answers) {
            (Some(failed), _) => Err(failed),
            (None, Ok(answers)) => Ok(answers),
            (None, Err(source)) => Err(DataplaneError::new(operations.join("; "), source)),
        }
    }

    /// Sends `output`, messages numbered from `first` as many as there are places in `refused`, and reads until the last is
    /// answered.
    fn exchange(
        &mut self,
        output: &[u8],
        first: u32,
        refused: &mut [Option<Refusal>],
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        // A datagram goes whole or not at all. Without an address it goes to the kernel.
        if self.socket.send(output, 0)? != output.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut answers = Vec::new();
        let mut input = Vec::with_capacity(DATAGRAM);
        loop {
            input.clear();
            let (_, from) = self.socket.recv_from(&mut input, 0)?;
            // Only the kernel has port 0: what another process sends here is no answer.
            if from.port_number() != 0 {
                continue;
            }
            let mut rest = input.as_slice();
            while let Some((message, tail)) = split_first(rest) {
                rest = tail;
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
                    continue;
                };
                let number = message.header.sequence_number.wrapping_sub(first);
                let place = usize::try_from(number).unwrap_or(usize::MAX);
                let is_last = place.checked_add(1) == Some(refused.len());
                let Some(refused) = refused.get_mut(place) else {
                    continue;
                };
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) => {
                        if error.code.is_some() {
                            *refused = Some(refusal(error.raw_code(), &error.header));
                        }
                        if is_last {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub(super) fn link_named(&mut self, name: &str) -> Result<Option<LinkMessage>, DataplaneError> {
        match self.transact(vec![(format!("find the link {name}"), named_link(name))]) {
            Ok(answers) => Ok(links(answers).next()),
            Err(error) if error.errno() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Asks for one link, without its counters.
fn named_link(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
    ];
    (RouteNetlinkMessage::GetLink(message), 0)
}

/// The links among answers.
fn links(answers: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = LinkMessage> {
    answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    })
}
