//! The Container Network Interface, versions 0.3.0 to 1.1.0: what the container runtime says in the environment and on
//! standard input, and what it is told on standard output.

mod config;
mod environment;
mod error;
mod name;
mod result;

pub use config::{NetworkConfig, asked_version};
pub use environment::{Command, Environment, Pod};
pub use error::{CniError, Code};
pub use name::{Name, NameError};
pub use result::{Attached, LinkEnd};

/// The versions of the specification that are spoken, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
