//! The kernel's side: what is there, what changes, and how to change it.

use async_trait::async_trait;
use tokio::sync::mpsc;

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
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The connection to the kernel ended before it answered: whether it was done, only a dump tells.
    #[error("{operation}: the netlink connection ended before the kernel answered")]
    ConnectionLost {
        /// What was asked.
        operation: String,
    },
}
