//! The echo: what the kernel tells every listener of the routes that this process itself has written.
//!
//! It is known already ([`crate::reconcile::Actual::applied`]), and a hundred thousand routes that are written at once would
//! be a hundred thousand events to read, more work than writing them. So the listener's socket drops it (socket(7),
//! SO_ATTACH_FILTER; the kernel asks the filter in net/netlink/af_netlink.c, do_one_broadcast). It is known by the port
//! of the socket that asked for the change, which nobody else can have while that is open. Where the filter cannot be
//! had, the echo is heard, and changes nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use netlink_sys::Socket;
use socket2::{SockFilter, SockRef};

/// Keeps listeners deaf to what one socket brings about, whichever of them is made anew.
#[derive(Clone, Debug, Default)]
pub(super) struct Echo(Arc<Mutex<Ends>>);

#[derive(Debug, Default)]
struct Ends {
    /// The port of the socket that changes are asked for on; 0, the kernel's own, for none.
    port: u32,
    /// The sockets that listen.
    listeners: Vec<Weak<OwnedFd>>,
}

/// A socket that does not hear the echo, as long as this is there.
pub(super) struct Deaf {
    _listener: Arc<OwnedFd>,
}

impl Echo {
    /// From now on changes are asked for on the socket of this port. Its predecessor must still be open: nobody else may have
    /// its port while the filter is the old one.
    pub(super) fn comes_from(&self, port: u32) {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.port = port;
        ends.listeners.retain(|listener| listener.strong_count() > 0);
        for listener in ends.listeners.iter().filter_map(Weak::upgrade) {
            silence(&listener, port);
        }
    }

    /// From now on this socket listens.
    pub(super) fn spares(&self, listener: &Socket) -> io::Result<Deaf> {
        let listener = Arc::new(listener.as_fd().try_clone_to_owned()?);
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silence(&listener, ends.port);
        ends.listeners.push(Arc::downgrade(&listener));
        Ok(Deaf { _listener: listener })
    }
}

fn silence(listener: &OwnedFd, port: u32) {
    if port != 0
        && let Err(error) = SockRef::from(listener).attach_filter(&program(port))
    {
        tracing::debug!(%error, "the listener hears of our own changes too");
    }
}

/// Drops what tells of a route and was brought about by the socket of this port; keeps all else.
fn program(port: u32) -> [SockFilter; 7] {
    // linux/bpf_common.h: load two or four bytes at an offset, jump if equal, return how much to keep.
    const LOAD_TWO: u16 = 0x28;
    const LOAD_FOUR: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // linux/rtnetlink.h, and the places in struct nlmsghdr of linux/netlink.h.
    const RTM_NEWROUTE: u16 = 24;
    const RTM_DELROUTE: u16 = 25;
    const TYPE: u32 = 4;
    const PORT: u32 = 12;
    // The machine loads in network order what the kernel has written in the host's.
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let port = u32::from_be_bytes(port.to_ne_bytes());
    [
        SockFilter::new(LOAD_TWO, 0, 0, TYPE),
        SockFilter::new(JUMP_IF_EQUAL, 1, 0, kind(RTM_NEWROUTE)),
        SockFilter::new(JUMP_IF_EQUAL, 0, 2, kind(RTM_DELROUTE)),
        SockFilter::new(LOAD_FOUR, 0, 0, PORT),
        SockFilter::new(JUMP_IF_EQUAL, 1, 0, port),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
