//! `culvert ipam release`: addresses given back by hand.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use culvert_ipam::allocator::HeldAddress;
use culvert_ipam::block::Attribute;
use culvert_ipam::check::{Finding, Problem};
use serde::{Deserialize, Serialize};

use super::super::CliError;
use super::super::store::StoreArguments;
use crate::allocation::Allocator;
use crate::api::IpamBlock;
use crate::datastore::{self, Datastore};

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Addresses, whoever has them.
    #[arg(long = "ip", value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,
    /// All addresses of a handle.
    #[arg(long, value_name = "HANDLE")]
    handle: Option<String>,
    /// All addresses that were taken for a pod, under whichever handle.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod)]
    pod: Option<(String, String)>,
    /// What a check has written with `--output`: only what nobody has taken anew since.
    #[arg(long, value_name = "FILE")]
    from_report: Option<PathBuf>,
}

/// `shop/web`.
fn pod(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("a pod is named by its namespace and its name, such as shop/web-0".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    store: StoreArguments,
}

/// What leaks, by sequence number, so that a release of what was taken anew since is refused.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Report {
    leaked: Vec<Leaked>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Leaked {
    address: IpAddr,
    handle: Option<String>,
    sequence_number: u64,
}

impl Report {
    /// What a check has found to leak.
    pub(super) fn of(problems: &[Problem]) -> Self {
        let leaked = problems.iter().filter_map(|problem| match &problem.finding {
            Finding::NotInUse(leak) => Some(Leaked {
                address: leak.address,
                handle: leak.handle.clone(),
                sequence_number: leak.sequence_number,
            }),
            _ => None,
        });
        Self {
            leaked: leaked.collect(),
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).map_err(|source| CliError::File {
            path: path.to_owned(),
            source,
        })
    }

    fn read(path: &Path) -> Result<Self, CliError> {
        let text = fs::read_to_string(path).map_err(|source| CliError::File {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|source| CliError::NoReport {
            path: path.to_owned(),
            source,
        })
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let text = arguments.store.run(async |store| {
        let allocator = Allocator::new(Arc::clone(&store), super::NOBODY.to_owned());
        let text = match &arguments.what.pod {
            Some(pod) => release_pod(&*store, &allocator, pod).await,
            None => release(&allocator, &arguments.what).await,
        };
        allocator.close().await;
        text
    })?;
    super::super::print(&text)
}

async fn release(allocator: &Allocator, what: &What) -> Result<String, CliError> {
    let What {
        addresses,
        handle,
        from_report,
        pod: _,
    } = what;
    if let Some(handle) = handle {
        let released = allocator.release(handle).await?;
        return Ok(format!("Released {} IPs of handle {handle}.\n", released.len()));
    }
    if let Some(path) = from_report {
        return from(allocator, Report::read(path)?).await;
    }
    let held = addresses.iter().map(|&address| HeldAddress {
        address,
        handle: None,
        sequence_number: None,
    });
    let released = allocator.release_addresses(held.collect()).await?;
    let line = |address: &IpAddr| match released.contains(address) {
        true => format!("Successfully released IP address {address}\n"),
        false => format!("IP address {address} is not assigned\n"),
    };
    Ok(addresses.iter().map(line).collect())
}

/// Whatever says that it was taken for this pod: each by its sequence number, so that what it takes meanwhile stays.
async fn release_pod(
    store: &dyn Datastore,
    allocator: &Allocator,
    (namespace, name): &(String, String),
) -> Result<String, CliError> {
    let blocks = datastore::list_whole::<IpamBlock>(store).await?;
    let of_pod = |attribute: &Attribute| {
        attribute.value("namespace") == Some(namespace) && attribute.value("pod") == Some(name)
    };
    let held = blocks.iter().flat_map(|block| {
        let taken = block.spec.taken().filter(|taken| of_pod(taken.attribute));
        taken.map(|taken| HeldAddress {
            address: taken.address,
            handle: taken.attribute.handle().map(str::to_owned),
            sequence_number: Some(block.spec.sequence_number_of(taken.ordinal)),
        })
    });
    let held: Vec<HeldAddress> = held.collect();
    if held.is_empty() {
        return Ok(format!("Pod {namespace}/{name} has no IPs.\n"));
    }
    let released = allocator.release_addresses(held).await?;
    let released: Vec<String> = released.iter().map(ToString::to_string).collect();
    Ok(format!(
        "Released {} IPs of pod {namespace}/{name}: {}.\n",
        released.len(),
        released.join(", ")
    ))
}

/// One by one: what was taken anew since is somebody's, and holds back no other.
async fn from(allocator: &Allocator, report: Report) -> Result<String, CliError> {
    let count = report.leaked.len();
    let mut text = format!("Releasing {count} old IPs...\n");
    let mut released = 0;
    for leaked in report.leaked {
        let held = HeldAddress {
            address: leaked.address,
            handle: leaked.handle,
            sequence_number: Some(leaked.sequence_number),
        };
        match allocator.release_addresses(vec![held]).await {
            Ok(addresses) => released += addresses.len(),
            Err(error) => text += &format!("not released: {}: {error}\n", leaked.address),
        }
    }
    text += &format!("Released {released} IPs successfully\n");
    Ok(text)
}
