//! The packet filter: the table `ip culvert` of nf_tables, and nobody else's.
//!
//! **Why netlink messages of our own, and not the `nft` program.** The crate `nftables` writes JSON for `nft`: an image
//! would carry `nft` and nine libraries (some 5 MB, more than half of what the agent is), run as root with what the
//! shell-like parser of libnftables takes, and fork for each reading of a counter. What is needed here is one table,
//! four sets and six rules: a few hundred lines. Over netlink a transaction is one datagram, that the kernel does whole
//! or not at all; CAP_NET_ADMIN is all it takes, as for the routes; and a counter is one question. Of the crates that
//! speak this netlink, `netlink-packet-netfilter` knows conntrack and logging but not nf_tables, `nftnl` wants C libraries,
//! and `rustables` is under the GPL.
//!
//! **How a change by somebody else is noticed.** The kernel tells of each transaction (`NFNLGRP_NFTABLES`), who made it,
//! and what of ours it touched: `nft flush ruleset` and a reload of firewalld are told at once, and the table is
//! compared and repaired then. A table may be bound to its maker, so that nobody else can touch it, but then it goes with
//! him: a restart of the agent would tear down what must stay.

mod connection;
mod events;
mod expression;
mod message;
mod ruleset;
mod table;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use connection::Connection;
use message::{Kind, Message};
use table::{Chain, Found, INPUT, REFUSED, TABLE, Table};

pub use events::{TableChange, TableChanges};
pub use view::TableView;

use crate::dataplane::{DataplaneError, Namespace};
use crate::desired::TUNNEL_DEVICE;
use crate::filter::Filter;

/// What was written to make the table what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing: it was so already.
    Nothing,
    /// Elements of sets; the rules and their counters stayed.
    Elements,
    /// All of it, counters from zero.
    Table,
}

/// The table `ip culvert` of one network namespace.
pub struct Nftables {
    connection: Connection,
    namespace: Namespace,
    /// An answer did not come: the next one might be mistaken for it.
    broken: bool,
}

impl Nftables {
    /// That of the calling thread's network namespace. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink, or no `/proc` is there.
    pub fn open() -> Result<Self, DataplaneError> {
        let open = || {
            let namespace = Namespace::current()?;
            let connection = Connection::open(&namespace, &[])?;
            Ok(Self {
                connection,
                namespace,
                broken: false,
            })
        };
        open().map_err(|source: io::Error| DataplaneError::new("open a netlink socket to nf_tables", source))
    }

    /// What others do to the table from now on.
    ///
    /// # Errors
    /// When the kernel refuses the subscription.
    pub fn changes(&self) -> Result<TableChanges, DataplaneError> {
        let opened = TableChanges::open(&self.namespace, self.connection.port);
        opened.map_err(|source| DataplaneError::new("listen to changes of nf_tables", source))
    }

    /// Makes the table hold `filter`, in one transaction, and writes nothing if it does.
    ///
    /// # Errors
    /// When the kernel refuses; then everything is as it was before.
    pub async fn apply(&mut self, filter: &Filter) -> Result<Written, DataplaneError> {
        let table = Table::new(filter, TUNNEL_DEVICE);
        let found = self.read(&table).await?;
        let (messages, written) = match found {
            Some(found) if table.has_frame_of(&found) => (table.write_elements(&found), Written::Elements),
            _ => (table.write(), Written::Table),
        };
        if messages.is_empty() {
            return Ok(Written::Nothing);
        }
        let done = self.sound()?.transact(&messages).await;
        self.note(done)?;
        Ok(written)
    }

    /// Removes the table, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&mut self) -> Result<(), DataplaneError> {
        if self
            .get(&ask(
                Kind::GetTable,
                table::named(TABLE),
                "read the nftables table ip culvert",
            ))
            .await?
            .is_none()
        {
            return Ok(());
        }
        let delete = Message::new(
            Kind::DeleteTable,
            0,
            table::named(TABLE),
            "delete the nftables table ip culvert",
        );
        let done = self.sound()?.transact(&[delete]).await;
        self.note(done)
    }

    /// How many tunnelled packets were refused since the table was made; none if it, or the rule, is not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn refused(&mut self) -> Result<Option<u64>, DataplaneError> {
        let chain = table::named(TABLE).with_text(2, INPUT.name);
        let rules = self
            .dump(&ask(
                Kind::GetRule,
                chain,
                "read the rules of the nftables table ip culvert",
            ))
            .await?;
        let rules = rules.unwrap_or_default();
        let rules = rules
            .iter()
            .filter(|rule| is_ours(rule))
            .filter_map(|rule| table::read_rule(rule));
        let mut counters = rules.filter(|(chain, _, _)| chain == INPUT.name);
        Ok(counters.find_map(|(_, _, packets)| packets))
    }

    /// How many came from each source; sources that were silent for an hour are left out, and so are those that had no
    /// more room.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn refused_by_source(&mut self) -> Result<BTreeMap<Ipv4Addr, u64>, DataplaneError> {
        let set = table::named(TABLE).with_text(2, REFUSED);
        let parts = self
            .dump(&ask(
                Kind::GetElements,
                set,
                "read the nftables set refused of ip culvert",
            ))
            .await?;
        let parts = parts.unwrap_or_default();
        let elements = parts.iter().flat_map(|part| table::read_elements(part));
        Ok(elements.filter_map(table::read_refused).collect())
    }

    /// The chains that look at IPv4 packets, with their rules: everybody's but those of our own table.
    ///
    /// # Errors
    /// When the kernel refuses, or has no nf_tables for IPv4.
    pub async fn ruleset(&mut self) -> Result<Vec<crate::ruleset::Chain>, DataplaneError> {
        let read = ruleset::read(self.sound()?).await;
        self.note(read)
    }

    /// What is there of `table`; none if it, or a set of it, is not.
    async fn read(&mut self, table: &Table) -> Result<Option<Found>, DataplaneError> {
        let purpose = "read the nftables table ip culvert";
        let Some(there) = self
            .get(&ask(Kind::GetTable, table::named(TABLE), purpose))
            .await?
        else {
            return Ok(None);
        };
        let mut found = Found {
            flags: message::find(&there, 2).and_then(message::u32_of).unwrap_or(0),
            ..Found::default()
        };
        for chain in table.chains() {
            let chain = table::named(TABLE).with_text(3, chain.name);
            let there = self.get(&ask(Kind::GetChain, chain, purpose)).await?;
            found.chains.push(there.as_deref().and_then(Chain::read));
        }
        let rules = self
            .dump(&ask(Kind::GetRule, table::named(TABLE), purpose))
            .await?;
        for rule in rules.unwrap_or_default().iter().filter(|rule| is_ours(rule)) {
            if let Some((chain, comment, _)) = table::read_rule(rule) {
                found.rules.entry(chain).or_default().push(comment);
            }
        }
        for set in table.sets() {
            let of = table::named(TABLE).with_text(2, set);
            let Some(parts) = self.dump(&ask(Kind::GetElements, of, purpose)).await? else {
                return Ok(None);
            };
            let elements: BTreeSet<_> = parts
                .iter()
                .flat_map(|part| table::read_elements(part))
                .map(|(element, _)| element)
                .collect();
            found.elements.insert(set, elements);
        }
        Ok(Some(found))
    }

    async fn get(&mut self, message: &Message) -> Result<Option<Vec<u8>>, DataplaneError> {
        let answer = self.sound()?.get(message).await;
        self.note(answer)
    }

    async fn dump(&mut self, message: &Message) -> Result<Option<Vec<Vec<u8>>>, DataplaneError> {
        let answer = self.sound()?.dump(message).await;
        self.note(answer)
    }

    /// The connection, made anew if an answer did not come on the former.
    fn sound(&mut self) -> Result<&mut Connection, DataplaneError> {
        if self.broken {
            let opened = Connection::open(&self.namespace, &[]);
            self.connection =
                opened.map_err(|source| DataplaneError::new("open a netlink socket to nf_tables", source))?;
            self.broken = false;
        }
        Ok(&mut self.connection)
    }

    fn note<T>(&mut self, answer: Result<T, DataplaneError>) -> Result<T, DataplaneError> {
        self.broken |= matches!(&answer, Err(DataplaneError::ConnectionLost { .. }));
        answer
    }
}

fn ask(kind: Kind, attributes: message::Attributes, purpose: &str) -> Message {
    Message::new(kind, 0, attributes, purpose)
}

/// Whether the object is of our table: older kernels answer with those of all tables.
fn is_ours(attributes: &[u8]) -> bool {
    message::find(attributes, 1).is_some_and(|name| message::text(name) == TABLE)
}
