//! Who changed our table.

use std::io;

use netlink_packet_core::NetlinkBuffer;
use nix::errno::Errno;

use super::connection::{Connection, messages};
use super::is_ours;
use super::message::{self, FAMILY, Kind};
use crate::dataplane::Namespace;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// Somebody else's transaction that touched our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChange {
    /// The program and its process id, `nft (4711)`; none where it was not told.
    pub by: Option<String>,
}

/// What others do to our table, as it happens.
pub struct TableChanges {
    connection: Connection,
    /// The socket whose transactions are our own.
    own: u32,
    /// A transaction touched our table, and is not over.
    touched: bool,
}

impl TableChanges {
    pub(super) fn open(namespace: &Namespace, own: u32) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::open(namespace, &[GROUP])?,
            own,
            touched: false,
        })
    }

    /// The next of them. Nothing is lost if it is dropped and called again.
    ///
    /// # Errors
    /// When the socket failed: make another.
    pub async fn next(&mut self) -> io::Result<TableChange> {
        loop {
            let bytes = match self.connection.read().await {
                Ok(bytes) => bytes,
                // Events were dropped: it may have been ours.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Ok(TableChange { by: None });
                }
                Err(error) => return Err(error),
            };
            let mut last = None;
            for message in messages(&bytes) {
                last = self.take(&message).or(last);
            }
            if let Some(change) = last {
                return Ok(change);
            }
        }
    }

    fn take(&mut self, message: &NetlinkBuffer<&[u8]>) -> Option<TableChange> {
        if message.port_number() == self.own {
            return None;
        }
        let (head, attributes) = message.payload().split_at_checked(4)?;
        // The last message of every transaction.
        if message.message_type() == Kind::NewGeneration.number() {
            let process = message::find(attributes, 2).and_then(message::u32_of);
            let name = message::find(attributes, 3).map(message::text);
            let by = process
                .zip(name)
                .map(|(process, name)| format!("{name} ({process})"));
            return std::mem::take(&mut self.touched).then_some(TableChange { by });
        }
        self.touched |= head.first() == Some(&FAMILY) && is_ours(attributes);
        None
    }
}
