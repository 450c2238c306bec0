//! The wire format: messages as values, and their exact bytes.
//!
//! A peer's octets are trusted with nothing. Every field is delimited by its own reader before anything looks into it,
//! every length is compared with what is there, and nothing is allocated for a number that a peer names. What is wrong
//! in an UPDATE gets a verdict of RFC 7606 that costs no more than it must; what is wrong elsewhere ends the session
//! with the NOTIFICATION that RFC 4271 §6 names.
//!
//! [`frame`] finds messages in a stream, [`decode`] and [`Decoder`] read them, [`encode`] and the functions beside it
//! write them.

mod as_path;
mod attribute;
mod encode;
mod fault;
mod frame;
pub mod message;
mod multiprotocol;
mod negotiated;
mod nlri;
pub mod notification;
mod octets;
mod open;
mod packing;
mod path;
mod repeat;
mod update;
mod zetta;

pub use encode::encode;
pub use fault::{Fault, FaultReason, Verdict};
pub use frame::{HEADER_LENGTH, MAX_EXTENDED_LENGTH, MAX_LENGTH, frame};
pub use negotiated::{Negotiated, NegotiatedFamily};
pub use packing::{encode_announcements, encode_end_of_rib, encode_withdrawals};

use frame::kind;
use message::{Family, Message, Notification, RefreshKind};
use notification::{code, header};
use repeat::Repeated;

/// A message, and what was wrong with it without ending the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The message, with the verdicts carried out.
    pub message: Message,
    /// Faults of an UPDATE, in the order in which they were found; none for other messages.
    pub faults: Vec<Fault>,
}

/// Reads the messages of one session, one after the other.
///
/// It remembers the attributes of the last UPDATE, and decodes and keeps them once where the next one has the same.
#[derive(Clone, Debug)]
pub struct Decoder {
    negotiated: Negotiated,
    repeated: Option<Repeated>,
}

impl Decoder {
    /// For a session on these terms.
    #[must_use]
    pub fn new(negotiated: Negotiated) -> Self {
        Self {
            negotiated,
            repeated: None,
        }
    }

    /// The terms.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Decodes one whole message, as [`frame`] delimits it.
    ///
    /// # Errors
    /// The NOTIFICATION that ends the session (RFC 4271 §6).
    pub fn decode(&mut self, message: &[u8]) -> Result<Decoded, Notification> {
        decode_with(message, self.negotiated, &mut self.repeated)
    }
}

/// Decodes one whole message, as [`frame`] delimits it. [`Decoder`] does so with less work for many of them.
///
/// # Errors
/// The NOTIFICATION that ends the session (RFC 4271 §6).
pub fn decode(message: &[u8], negotiated: Negotiated) -> Result<Decoded, Notification> {
    decode_with(message, negotiated, &mut None)
}

fn decode_with(
    message: &[u8],
    negotiated: Negotiated,
    repeated: &mut Option<Repeated>,
) -> Result<Decoded, Notification> {
    let whole = frame(message, negotiated)? == Some(message.len());
    let (Some(head), true) = (message.first_chunk::<HEADER_LENGTH>(), whole) else {
        // Not one message: the length field and the octets disagree (RFC 4271 §6.1).
        let data = message.get(16..18).unwrap_or_default().to_vec();
        return Err(Notification::with_data(
            code::MESSAGE_HEADER,
            header::BAD_MESSAGE_LENGTH,
            data,
        ));
    };
    let [.., kind] = head;
    let body = message.get(HEADER_LENGTH..).unwrap_or_default();
    let message = match *kind {
        kind::OPEN => Message::Open(open::decode(body)?),
        kind::UPDATE => {
            let (update, faults) = update::decode(body, negotiated, repeated)?;
            return Ok(Decoded {
                message: Message::Update(update),
                faults,
            });
        }
        kind::NOTIFICATION => notification_of(body)?,
        kind::KEEPALIVE => Message::Keepalive,
        _ => route_refresh(message, body, negotiated)?,
    };
    Ok(Decoded {
        message,
        faults: Vec::new(),
    })
}

fn bad_length(body: &[u8]) -> Notification {
    let length = u16::try_from(HEADER_LENGTH.saturating_add(body.len())).unwrap_or(u16::MAX);
    let data = length.to_be_bytes().to_vec();
    Notification::with_data(code::MESSAGE_HEADER, header::BAD_MESSAGE_LENGTH, data)
}

/// RFC 4271 §4.5.
fn notification_of(body: &[u8]) -> Result<Message, Notification> {
    let [code, subcode, data @ ..] = body else {
        return Err(bad_length(body));
    };
    Ok(Message::Notification(Notification::with_data(
        *code,
        *subcode,
        data.to_vec(),
    )))
}

/// RFC 2918 §3: AFI, an octet that is not looked at unless RFC 7313 §3.2 made it a subtype, SAFI.
fn route_refresh(message: &[u8], body: &[u8], negotiated: Negotiated) -> Result<Message, Notification> {
    let enhanced = negotiated.enhanced_route_refresh;
    let [high, low, subtype, safi] = body else {
        return Err(match body.get(2) {
            // RFC 7313 §5: a marker of another length has an error of its own, with the message as data.
            Some(1 | 2) if enhanced => Notification::with_data(
                code::ROUTE_REFRESH_MESSAGE,
                notification::route_refresh::INVALID_MESSAGE_LENGTH,
                message.to_vec(),
            ),
            _ => bad_length(body),
        });
    };
    let kind = match subtype {
        1 if enhanced => RefreshKind::BeginOfRr,
        2 if enhanced => RefreshKind::EndOfRr,
        3.. if enhanced => RefreshKind::Unknown(*subtype),
        _ => RefreshKind::Request,
    };
    let family = Family {
        afi: u16::from_be_bytes([*high, *low]),
        safi: *safi,
    };
    Ok(Message::RouteRefresh { family, kind })
}
