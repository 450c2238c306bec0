//! The kernel's side: what is there, what changes, and how to change it.

mod iptables;
mod namespace;
mod netlink;
mod path_mtu_discovery;
pub mod probe;
mod source;
mod sysctl;
mod xtables;

use std::{fmt, io};

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use iptables::iptables;
pub use namespace::Namespace;
pub use netlink::Netlink;
pub use netlink::attach::{
    HOST_MAC, MacAddress, POD_GATEWAY, POD_GATEWAY_V6, PodAttached, PodLink, attach_pod, detach_pod,
};
pub use netlink::nftables::{Nftables, TableChange, TableChanges, TableView, Written};

use crate::fib::{Change, KernelEvent, Snapshot};

/// What the agent asks of a kernel.
#[async_trait]
pub trait Dataplane: Send + Sync {
    /// All that is there now.
    ///
    /// # Errors
    /// When the kernel refuses or the connection to it is gone.
    async fn dump(&self) -> Result<Snapshot, DataplaneError>;

    /// Makes `changes` in their order. One that fails does not hold back the others: its place in the answer, which is
    /// as long as `changes`, says why.
    async fn apply(&self, changes: &[Change]) -> Vec<Result<(), DataplaneError>>;

    /// What happens from now on. Subscribe first and dump afterwards: then nothing is missed.
    ///
    /// Not all that happens is told: the kernel removes IPv4 routes without a word when their link goes down or loses
    /// its last address, or when their source address goes. `reconcile::Actual::observe` knows when to dump again.
    ///
    /// # Errors
    /// When the kernel refuses the subscription.
    fn events(&self) -> Result<mpsc::Receiver<KernelEvent>, DataplaneError>;
}

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The kernel answered with an error.
    #[error("{operation}: {source}")]
    Kernel {
        /// What was asked, in words and with its values.
        operation: String,
        /// The kernel's answer. One that came with words of the kernel's own has [`Refusal`] inside.
        source: io::Error,
    },
    /// The connection to the kernel ended before it answered: whether it was done, only a dump tells.
    #[error(
        "{operation}: the netlink connection ended before the kernel answered; only a new dump tells whether it was done"
    )]
    ConnectionLost {
        /// What was asked.
        operation: String,
    },
}

impl DataplaneError {
    fn new(operation: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel {
            operation: operation.into(),
            source,
        }
    }

    fn refused(operation: impl Into<String>, refusal: Refusal) -> Self {
        Self::new(operation, refusal.into())
    }

    fn lost(operation: impl Into<String>) -> Self {
        Self::ConnectionLost {
            operation: operation.into(),
        }
    }

    /// The kernel's error number, where it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        let Self::Kernel { source, .. } = self else {
            return None;
        };
        let refusal = source.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>());
        refusal
            .map(|refusal| refusal.errno)
            .or_else(|| source.raw_os_error())
    }
}

/// An error number of the kernel, with the words that came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The number, positive (`EEXIST` is 17).
    pub errno: i32,
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`), or ours where they help more. May be empty.
    pub words: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = io::Error::from_raw_os_error(self.errno);
        if self.words.is_empty() {
            write!(f, "{number}")
        } else {
            write!(f, "{}: {number}", self.words)
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let plain = Self::from_raw_os_error(refusal.errno);
        if refusal.words.is_empty() {
            plain
        } else {
            Self::new(plain.kind(), refusal)
        }
    }
}
