//! What the kernel under the speaker holds, from its own events (rtnetlink(7)), with the time of each.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};

use crate::message::BLOCK_LENGTH;

/// RTMGRP_IPV4_ROUTE.
const ROUTES_OF_IPV4: u32 = 0x40;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTA_DST: u16 = 1;
const RTN_UNICAST: u8 = 1;
const RT_TABLE_MAIN: u8 = 254;
/// An event takes about a kilobyte of it; a reader that is not run for a while loses none.
const RECEIVE_BUFFER: usize = 256 << 20;
/// Blocks in 10.0.0.0/8.
const BLOCKS: usize = 1 << (BLOCK_LENGTH - 8);

/// The blocks of 10.0.0.0/8 that the main table has a unicast route to.
#[derive(Debug)]
pub(crate) struct Fib {
    socket: OwnedFd,
    present: Vec<bool>,
    count: usize,
    changed: Instant,
}

impl Fib {
    /// Watches the namespace that this thread is in, which has no such routes yet.
    pub(crate) fn watch() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, ROUTES_OF_IPV4))?;
        Ok(Self {
            socket,
            present: vec![false; BLOCKS],
            count: 0,
            changed: Instant::now(),
        })
    }

    /// How many blocks there are routes to.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Whether there is a route to this one.
    pub(crate) fn holds(&self, block: Ipv4Addr) -> bool {
        index(block).is_some_and(|index| self.present[index])
    }

    /// When the last change was heard of.
    pub(crate) fn changed(&self) -> Instant {
        self.changed
    }

    /// Takes in all that has happened.
    pub(crate) fn take_events(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16_384];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => self.take(&buffer[..length]),
                Err(Errno::EAGAIN) => return Ok(()),
                // ENOBUFS: events were lost, and with them the time of what they told.
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self, mut datagram: &[u8]) {
        // struct nlmsghdr: length, type, flags, sequence, sender.
        while datagram.len() >= 16 {
            let length = u32::from_ne_bytes(datagram[..4].try_into().expect("four octets")) as usize;
            let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
            let Some(body) = datagram.get(16..length) else {
                return;
            };
            if let Some(index) = route(body).and_then(index) {
                self.set(index, kind);
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn set(&mut self, index: usize, kind: u16) {
        let now = match kind {
            RTM_NEWROUTE => true,
            RTM_DELROUTE => false,
            _ => return,
        };
        if self.present[index] != now {
            self.present[index] = now;
            self.count = if now { self.count + 1 } else { self.count - 1 };
            self.changed = Instant::now();
        }
    }
}

impl AsFd for Fib {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The destination of a message about a unicast route to a block in the main table.
fn route(body: &[u8]) -> Option<Ipv4Addr> {
    // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
    let (header, mut attributes) = body.split_at_checked(12)?;
    if (header[1], header[4], header[7]) != (BLOCK_LENGTH, RT_TABLE_MAIN, RTN_UNICAST) {
        return None;
    }
    while let Some(&[a, b, c, d]) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        if u16::from_ne_bytes([c, d]) == RTA_DST {
            let octets: [u8; 4] = attributes.get(4..8)?.try_into().ok()?;
            return Some(octets.into());
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

fn index(block: Ipv4Addr) -> Option<usize> {
    let offset = u32::from(block).checked_sub(u32::from(Ipv4Addr::new(10, 0, 0, 0)))?;
    let index = usize::try_from(offset >> (32 - BLOCK_LENGTH)).ok()?;
    (index < BLOCKS).then_some(index)
}
