//! Why sessions end: the codes of RFC 4271 §4.5 and of its later additions, as names, as text, and with their data.

use std::fmt;

use super::message::Notification;
use crate::error::ShutdownTextError;

/// Error codes.
pub mod code {
    /// RFC 4271 §6.1.
    pub const MESSAGE_HEADER: u8 = 1;
    /// RFC 4271 §6.2.
    pub const OPEN_MESSAGE: u8 = 2;
    /// RFC 4271 §6.3.
    pub const UPDATE_MESSAGE: u8 = 3;
    /// RFC 4271 §6.5.
    pub const HOLD_TIMER_EXPIRED: u8 = 4;
    /// RFC 4271 §6.6.
    pub const FINITE_STATE_MACHINE: u8 = 5;
    /// RFC 4271 §6.7.
    pub const CEASE: u8 = 6;
    /// RFC 7313 §5.
    pub const ROUTE_REFRESH_MESSAGE: u8 = 7;
    /// RFC 9687 §5.
    pub const SEND_HOLD_TIMER_EXPIRED: u8 = 8;
}

/// The subcode that says nothing more than the code does.
pub const UNSPECIFIC: u8 = 0;

/// Subcodes of [`code::MESSAGE_HEADER`] (RFC 4271 §6.1).
pub mod header {
    /// The marker is not all ones.
    pub const CONNECTION_NOT_SYNCHRONIZED: u8 = 1;
    /// The data is the Length field.
    pub const BAD_MESSAGE_LENGTH: u8 = 2;
    /// The data is the Type field.
    pub const BAD_MESSAGE_TYPE: u8 = 3;
}

/// Subcodes of [`code::OPEN_MESSAGE`] (RFC 4271 §6.2, RFC 5492 §5).
pub mod open {
    /// The data is the version to try, in two octets.
    pub const UNSUPPORTED_VERSION_NUMBER: u8 = 1;
    /// Also AS 0 (RFC 7607 §2).
    pub const BAD_PEER_AS: u8 = 2;
    /// Zero, or our own from an internal peer (RFC 6286 §2.2).
    pub const BAD_BGP_IDENTIFIER: u8 = 3;
    /// An optional parameter that is not Capabilities.
    pub const UNSUPPORTED_OPTIONAL_PARAMETER: u8 = 4;
    /// One or two seconds.
    pub const UNACCEPTABLE_HOLD_TIME: u8 = 6;
    /// The data is the capabilities that are missing (RFC 5492 §5).
    pub const UNSUPPORTED_CAPABILITY: u8 = 7;
    /// The roles of both ends do not pair (RFC 9234 §4.2).
    pub const ROLE_MISMATCH: u8 = 11;
}

/// Subcodes of [`code::UPDATE_MESSAGE`] (RFC 4271 §6.3).
pub mod update {
    /// The fields do not add up, or MP_REACH_NLRI or MP_UNREACH_NLRI stands twice (RFC 7606 §3 g).
    pub const MALFORMED_ATTRIBUTE_LIST: u8 = 1;
    /// The data is the attribute.
    pub const UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE: u8 = 2;
    /// The data is the type code.
    pub const MISSING_WELL_KNOWN_ATTRIBUTE: u8 = 3;
    /// The data is the attribute.
    pub const ATTRIBUTE_FLAGS: u8 = 4;
    /// The data is the attribute.
    pub const ATTRIBUTE_LENGTH: u8 = 5;
    /// The data is the attribute.
    pub const INVALID_ORIGIN: u8 = 6;
    /// The data is the attribute.
    pub const INVALID_NEXT_HOP: u8 = 8;
    /// The data is the attribute.
    pub const OPTIONAL_ATTRIBUTE: u8 = 9;
    /// A prefix is too long, or cut off.
    pub const INVALID_NETWORK_FIELD: u8 = 10;
    /// Broken segments.
    pub const MALFORMED_AS_PATH: u8 = 11;
}

/// Subcodes of [`code::ROUTE_REFRESH_MESSAGE`] (RFC 7313 §5).
pub mod route_refresh {
    /// The data is the message.
    pub const INVALID_MESSAGE_LENGTH: u8 = 1;
}

/// Subcodes of [`code::FINITE_STATE_MACHINE`] (RFC 6608 §3).
pub mod fsm {
    /// Something other than an OPEN came in OpenSent.
    pub const UNEXPECTED_IN_OPEN_SENT: u8 = 1;
    /// Something other than a KEEPALIVE came in OpenConfirm.
    pub const UNEXPECTED_IN_OPEN_CONFIRM: u8 = 2;
    /// An OPEN came in Established.
    pub const UNEXPECTED_IN_ESTABLISHED: u8 = 3;
}

/// Subcodes of [`code::CEASE`] (RFC 4486 §3, and as noted).
pub mod cease {
    /// The data is the family and the limit.
    pub const MAXIMUM_PREFIXES_REACHED: u8 = 1;
    /// The data may be a shutdown text (RFC 9003 §2).
    pub const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
    /// The peer is no longer configured.
    pub const PEER_DECONFIGURED: u8 = 3;
    /// The data may be a shutdown text (RFC 9003 §2).
    pub const ADMINISTRATIVE_RESET: u8 = 4;
    /// The peer is not (or not now) allowed.
    pub const CONNECTION_REJECTED: u8 = 5;
    /// Something else in the configuration changed.
    pub const OTHER_CONFIGURATION_CHANGE: u8 = 6;
    /// The other connection of the two was kept (RFC 4271 §6.8).
    pub const CONNECTION_COLLISION: u8 = 7;
    /// Memory or the like ran out.
    pub const OUT_OF_RESOURCES: u8 = 8;
    /// Forwarding state is not to be kept (RFC 8538 §3).
    pub const HARD_RESET: u8 = 9;
    /// BFD lost the peer (RFC 9384 §3).
    pub const BFD_DOWN: u8 = 10;
}

/// What a code and its subcode mean, for people.
#[must_use]
pub fn text(code: u8, subcode: u8) -> &'static str {
    match code {
        code::MESSAGE_HEADER => match subcode {
            UNSPECIFIC => "message header error",
            header::CONNECTION_NOT_SYNCHRONIZED => "message header error: connection not synchronized",
            header::BAD_MESSAGE_LENGTH => "message header error: bad message length",
            header::BAD_MESSAGE_TYPE => "message header error: bad message type",
            _ => "message header error: unknown subcode",
        },
        code::OPEN_MESSAGE => open_text(subcode),
        code::UPDATE_MESSAGE => update_text(subcode),
        code::HOLD_TIMER_EXPIRED => "hold timer expired",
        code::FINITE_STATE_MACHINE => match subcode {
            UNSPECIFIC => "finite state machine error",
            fsm::UNEXPECTED_IN_OPEN_SENT => "unexpected message in OpenSent",
            fsm::UNEXPECTED_IN_OPEN_CONFIRM => "unexpected message in OpenConfirm",
            fsm::UNEXPECTED_IN_ESTABLISHED => "unexpected message in Established",
            _ => "finite state machine error: unknown subcode",
        },
        code::CEASE => cease_text(subcode),
        code::ROUTE_REFRESH_MESSAGE => match subcode {
            route_refresh::INVALID_MESSAGE_LENGTH => "route refresh message error: invalid message length",
            _ => "route refresh message error",
        },
        code::SEND_HOLD_TIMER_EXPIRED => "send hold timer expired",
        _ => "unknown error code",
    }
}

fn open_text(subcode: u8) -> &'static str {
    match subcode {
        UNSPECIFIC => "open message error",
        open::UNSUPPORTED_VERSION_NUMBER => "open message error: unsupported version number",
        open::BAD_PEER_AS => "open message error: bad peer AS",
        open::BAD_BGP_IDENTIFIER => "open message error: bad BGP identifier",
        open::UNSUPPORTED_OPTIONAL_PARAMETER => "open message error: unsupported optional parameter",
        5 => "open message error: authentication failure",
        open::UNACCEPTABLE_HOLD_TIME => "open message error: unacceptable hold time",
        open::UNSUPPORTED_CAPABILITY => "open message error: unsupported capability",
        open::ROLE_MISMATCH => "open message error: role mismatch",
        _ => "open message error: unknown subcode",
    }
}

fn update_text(subcode: u8) -> &'static str {
    match subcode {
        UNSPECIFIC => "update message error",
        update::MALFORMED_ATTRIBUTE_LIST => "update message error: malformed attribute list",
        update::UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE => {
            "update message error: unrecognized well-known attribute"
        }
        update::MISSING_WELL_KNOWN_ATTRIBUTE => "update message error: missing well-known attribute",
        update::ATTRIBUTE_FLAGS => "update message error: attribute flags error",
        update::ATTRIBUTE_LENGTH => "update message error: attribute length error",
        update::INVALID_ORIGIN => "update message error: invalid ORIGIN attribute",
        7 => "update message error: AS routing loop",
        update::INVALID_NEXT_HOP => "update message error: invalid NEXT_HOP attribute",
        update::OPTIONAL_ATTRIBUTE => "update message error: optional attribute error",
        update::INVALID_NETWORK_FIELD => "update message error: invalid network field",
        update::MALFORMED_AS_PATH => "update message error: malformed AS_PATH",
        _ => "update message error: unknown subcode",
    }
}

fn cease_text(subcode: u8) -> &'static str {
    match subcode {
        UNSPECIFIC => "cease",
        cease::MAXIMUM_PREFIXES_REACHED => "cease: maximum number of prefixes reached",
        cease::ADMINISTRATIVE_SHUTDOWN => "cease: administrative shutdown",
        cease::PEER_DECONFIGURED => "cease: peer de-configured",
        cease::ADMINISTRATIVE_RESET => "cease: administrative reset",
        cease::CONNECTION_REJECTED => "cease: connection rejected",
        cease::OTHER_CONFIGURATION_CHANGE => "cease: other configuration change",
        cease::CONNECTION_COLLISION => "cease: connection collision resolution",
        cease::OUT_OF_RESOURCES => "cease: out of resources",
        cease::HARD_RESET => "cease: hard reset",
        cease::BFD_DOWN => "cease: BFD down",
        _ => "cease: unknown subcode",
    }
}

impl Notification {
    /// One without data.
    #[must_use]
    pub fn new(code: u8, subcode: u8) -> Self {
        Self::with_data(code, subcode, Vec::new())
    }

    /// One with the data that its code's definition asks for.
    #[must_use]
    pub fn with_data(code: u8, subcode: u8, data: Vec<u8>) -> Self {
        Self { code, subcode, data }
    }

    /// A Cease for the given reason (RFC 4486 §4).
    #[must_use]
    pub fn cease(subcode: u8) -> Self {
        Self::new(code::CEASE, subcode)
    }

    /// A Cease with a text for the operator at the other end: [`cease::ADMINISTRATIVE_SHUTDOWN`] or
    /// [`cease::ADMINISTRATIVE_RESET`]. Of a text over 255 octets the whole characters that fit are sent (RFC 9003 §2).
    #[must_use]
    pub fn cease_with_text(subcode: u8, text: &str) -> Self {
        let mut end = text.len().min(255);
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let text = text.get(..end).unwrap_or_default();
        let mut data = vec![u8::try_from(text.len()).unwrap_or(0)];
        data.extend_from_slice(text.as_bytes());
        Self::with_data(code::CEASE, subcode, data)
    }

    /// The text that an operator sent along with a shutdown or a reset (RFC 8203 §2, RFC 9003 §2); `None` where this is
    /// no such message or carries none. It is the peer's word: escape it before it reaches a terminal.
    ///
    /// # Errors
    /// [`ShutdownTextError`] when the length octet and the data disagree, or the text is not UTF-8. The session has
    /// ended all the same.
    pub fn shutdown_text(&self) -> Result<Option<&str>, ShutdownTextError> {
        let may_carry = self.code == code::CEASE
            && matches!(
                self.subcode,
                cease::ADMINISTRATIVE_SHUTDOWN | cease::ADMINISTRATIVE_RESET
            );
        let Some((length, octets)) = self.data.split_first().filter(|_| may_carry) else {
            return Ok(None);
        };
        if usize::from(*length) > octets.len() {
            return Err(ShutdownTextError::Length {
                announced: *length,
                present: octets.len(),
            });
        }
        // RFC 9003 §2: a length of zero says that there is no text. What follows the text is ignored.
        let octets = octets.get(..usize::from(*length)).unwrap_or_default();
        match std::str::from_utf8(octets) {
            Ok("") => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(fault) => Err(ShutdownTextError::NotUtf8 {
                valid: fault.valid_up_to(),
                length: octets.len(),
            }),
        }
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}/{})",
            text(self.code, self.subcode),
            self.code,
            self.subcode
        )
    }
}
