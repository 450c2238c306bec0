//! The message header (RFC 4271 §4.1): where one message ends and the next begins.

use super::Negotiated;
use super::message::Notification;
use super::notification::{code, header};

/// Octets of the header: marker, length, type (RFC 4271 §4.1).
pub const HEADER_LENGTH: usize = 19;
/// Octets of the longest message (RFC 4271 §4.1).
pub const MAX_LENGTH: usize = 4096;
/// Octets of the longest message where RFC 8654 §3 was agreed on. OPEN and KEEPALIVE never exceed [`MAX_LENGTH`].
pub const MAX_EXTENDED_LENGTH: usize = 65535;

/// The types of message (RFC 4271 §4.1, RFC 2918 §3).
pub(super) mod kind {
    pub(crate) const OPEN: u8 = 1;
    pub(crate) const UPDATE: u8 = 2;
    pub(crate) const NOTIFICATION: u8 = 3;
    pub(crate) const KEEPALIVE: u8 = 4;
    pub(crate) const ROUTE_REFRESH: u8 = 5;
}

/// Octets of the longest message that may be sent, OPEN and KEEPALIVE aside (RFC 8654 §4).
pub(super) fn limit_to_send(negotiated: Negotiated) -> usize {
    if negotiated.extended_messages.send {
        MAX_EXTENDED_LENGTH
    } else {
        MAX_LENGTH
    }
}

/// Octets of the longest message of a type that may come in.
fn limit_to_receive(kind: u8, negotiated: Negotiated) -> usize {
    match kind {
        // RFC 8654 §4: these two stay as short as they were.
        kind::OPEN | kind::KEEPALIVE => MAX_LENGTH,
        _ if negotiated.extended_messages.receive => MAX_EXTENDED_LENGTH,
        _ => MAX_LENGTH,
    }
}

/// Looks for one whole message at the start of `buffer`.
///
/// `Ok(None)`: more octets are needed. `Ok(Some(n))`: the first `n` octets are one: [`HEADER_LENGTH`] to [`MAX_LENGTH`]
/// of them, or to [`MAX_EXTENDED_LENGTH`] where the peer was told that this speaker can take as many.
///
/// # Errors
/// The NOTIFICATION that a broken header calls for (RFC 4271 §6.1), as soon as the header is complete.
pub fn frame(buffer: &[u8], negotiated: Negotiated) -> Result<Option<usize>, Notification> {
    let Some(head) = buffer.first_chunk::<HEADER_LENGTH>() else {
        return Ok(None);
    };
    let [marker @ .., high, low, kind] = head;
    // RFC 4271 §6.1: a marker that is not all ones is a connection out of step.
    if marker.iter().any(|octet| *octet != 0xff) {
        return Err(Notification::new(
            code::MESSAGE_HEADER,
            header::CONNECTION_NOT_SYNCHRONIZED,
        ));
    }
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    // RFC 4271 §6.1: the erroneous Length field is the data.
    let bad_length = || {
        Notification::with_data(
            code::MESSAGE_HEADER,
            header::BAD_MESSAGE_LENGTH,
            vec![*high, *low],
        )
    };
    if !(HEADER_LENGTH..=limit_to_receive(*kind, negotiated)).contains(&length) {
        return Err(bad_length());
    }
    // RFC 4271 §6.1: each type has its own least length, and a KEEPALIVE has no other.
    let fits = match *kind {
        kind::OPEN => length >= 29,
        kind::UPDATE => length >= 23,
        kind::NOTIFICATION => length >= 21,
        kind::KEEPALIVE => length == HEADER_LENGTH,
        // RFC 2918 §3: four octets. Longer ones belong to an extension that is never negotiated here (RFC 5291). Where
        // RFC 7313 is, what a wrong length costs depends on the subtype, which is in the body.
        kind::ROUTE_REFRESH => length == 23 || negotiated.enhanced_route_refresh,
        unknown => {
            // RFC 4271 §6.1: the erroneous Type field is the data.
            return Err(Notification::with_data(
                code::MESSAGE_HEADER,
                header::BAD_MESSAGE_TYPE,
                vec![unknown],
            ));
        }
    };
    if !fits {
        return Err(bad_length());
    }
    Ok((buffer.len() >= length).then_some(length))
}

/// A message around `body`, which the caller keeps within what the session allows, less [`HEADER_LENGTH`].
pub(super) fn enclose(kind: u8, body: &[u8]) -> Vec<u8> {
    let body = body.get(..MAX_EXTENDED_LENGTH - HEADER_LENGTH).unwrap_or(body);
    let length = u16::try_from(HEADER_LENGTH + body.len()).unwrap_or(u16::MAX);
    let mut message = Vec::with_capacity(HEADER_LENGTH + body.len());
    message.extend_from_slice(&[0xff; 16]);
    message.extend_from_slice(&length.to_be_bytes());
    message.push(kind);
    message.extend_from_slice(body);
    message
}
