//! Communities that every speaker knows (RFC 1997, RFC 9494), and what they ask for.

use crate::wire::message::PathAttributes;

/// RFC 1997: not to be told outside of our AS.
pub const NO_EXPORT: u32 = 0xffff_ff01;
/// RFC 1997: not to be told to anybody.
pub const NO_ADVERTISE: u32 = 0xffff_ff02;
/// RFC 1997: not to be told outside of our member AS, which is the whole AS here.
pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;
/// RFC 9494 §4.6: stale for a long time, and to be used only where there is no other path.
pub const LLGR_STALE: u32 = 0xffff_0006;
/// RFC 9494 §4.6: not to be kept for long when it is stale.
pub const NO_LLGR: u32 = 0xffff_0007;

/// Whether a path carries `community`.
#[must_use]
pub fn has(attributes: &PathAttributes, community: u32) -> bool {
    // They are few, and in order only where they were read.
    attributes.communities.contains(&community)
}

/// Whether a path that carries these may be told to a peer.
#[must_use]
pub fn may_be_told(attributes: &PathAttributes, to_internal: bool) -> bool {
    attributes.communities.iter().all(|&community| match community {
        NO_ADVERTISE => false,
        NO_EXPORT | NO_EXPORT_SUBCONFED => to_internal,
        _ => true,
    })
}
