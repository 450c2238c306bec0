//! The expressions that rules are made of. Each loads into the one register or looks at it.

use super::message::Attributes;

/// `NFT_REG_1`: 16 bytes.
pub(super) const REGISTER: u32 = 1;

/// An address in the IPv4 header: its offset in bytes.
pub(super) struct Field(u32);

pub(super) const SOURCE: Field = Field(12);
pub(super) const DESTINATION: Field = Field(16);

impl Field {
    pub(super) fn load(&self) -> Attributes {
        payload(self.0, 4)
    }
}

pub(super) fn expression(name: &str, attributes: &Attributes) -> Attributes {
    Attributes::new().with_text(1, name).with_nested(2, attributes)
}

/// Loads from the network header.
pub(super) fn payload(offset: u32, length: u32) -> Attributes {
    // NFT_PAYLOAD_NETWORK_HEADER.
    let attributes = Attributes::new()
        .with_u32(1, REGISTER)
        .with_u32(2, 1)
        .with_u32(3, offset)
        .with_u32(4, length);
    expression("payload", &attributes)
}

pub(super) fn compare(equal: bool, value: &[u8]) -> Attributes {
    // NFT_CMP_EQ, NFT_CMP_NEQ.
    let attributes = Attributes::new()
        .with_u32(1, REGISTER)
        .with_u32(2, u32::from(!equal))
        .with_nested(3, &Attributes::new().with(1, value));
    expression("cmp", &attributes)
}

pub(super) fn lookup(set: &str, member: bool) -> Attributes {
    let attributes = Attributes::new().with_text(1, set).with_u32(2, REGISTER);
    // NFT_LOOKUP_F_INV.
    let attributes = if member {
        attributes
    } else {
        attributes.with_u32(5, 1)
    };
    expression("lookup", &attributes)
}

pub(super) fn address_type(flags: u32) -> Attributes {
    // NFT_FIB_RESULT_ADDRTYPE.
    let attributes = Attributes::new()
        .with_u32(1, REGISTER)
        .with_u32(2, 3)
        .with_u32(3, flags);
    expression("fib", &attributes)
}

pub(super) fn counter() -> Attributes {
    expression("counter", &Attributes::new())
}

/// 0 is `NF_DROP`, 1 `NF_ACCEPT`.
pub(super) fn verdict(code: u32) -> Attributes {
    // NFT_REG_VERDICT.
    let verdict = Attributes::new().with_nested(2, &Attributes::new().with_u32(1, code));
    let attributes = Attributes::new().with_u32(1, 0).with_nested(2, &verdict);
    expression("immediate", &attributes)
}

pub(super) fn masquerade() -> Attributes {
    // NF_NAT_RANGE_PROTO_RANDOM_FULLY: two connections at once do not try for the same port.
    expression("masq", &Attributes::new().with_u32(1, 16))
}
