//! `culvert ipam split`: a pool becomes several smaller ones of equal size.

use clap::Args;
use ipnet::IpNet;

use super::super::CliError;
use super::super::store::StoreArguments;
use crate::api::{IpPool, Key, Kind, Object, Resource};
use crate::datastore::{self, Datastore};

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The pool, by its range.
    #[arg(long, value_name = "CIDR")]
    cidr: Option<IpNet>,
    /// The pool, by its name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    /// Into how many: 2, 4, 8, …
    #[arg(value_name = "NUMBER")]
    number: u32,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    store: StoreArguments,
}

/// Why a pool cannot be split.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The number is no power of two.
    #[error("a pool can be split into 2, 4, 8 or another power of 2, not into {number}")]
    Number {
        /// What was asked for.
        number: u32,
    },
    /// The parts would be smaller than a block.
    #[error(
        "pool {pool} ({cidr}) cannot be split into {number}: each part would be smaller than a block (/{block_size})"
    )]
    TooSmall {
        /// The pool.
        pool: String,
        /// Its range.
        cidr: IpNet,
        /// What was asked for.
        number: u32,
        /// Prefix length of its blocks.
        block_size: u8,
    },
    /// There is no such pool.
    #[error("there is no IPPool with the range {cidr}; `culvert get ippools` lists what there is")]
    NoPool {
        /// What was asked for.
        cidr: IpNet,
    },
    /// Something else has the name of a part.
    #[error("IPPool {name} is there already with the range {found}, not {cidr}; delete or rename it first")]
    Taken {
        /// The name.
        name: String,
        /// Its range.
        found: IpNet,
        /// The range of the part.
        cidr: IpNet,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let text = arguments.store.run(async |store| {
        let pool = find(store.as_ref(), &arguments.which).await?;
        let parts = parts(&pool, arguments.number)?;
        // First the parts, then the whole goes: meanwhile those that overlap it give out nothing, and when this process
        // dies in between, the same command carries on.
        for part in &parts {
            let there = datastore::get::<IpPool>(store.as_ref(), &part.metadata.name).await?;
            match there {
                None => {
                    store.create(Object::IpPool(part.clone())).await?;
                }
                Some(there) if there.spec.cidr == part.spec.cidr => {}
                Some(there) => {
                    return Err(CliError::from(SplitError::Taken {
                        name: part.metadata.name.clone(),
                        found: there.spec.cidr,
                        cidr: part.spec.cidr,
                    }));
                }
            }
        }
        let revision = pool.metadata.resource_version.clone().unwrap_or_default();
        store.delete(&pool.key(), &revision).await?;
        let lines = parts
            .iter()
            .map(|part| format!("  {} {}\n", part.metadata.name, part.spec.cidr));
        Ok(format!(
            "Successfully split IP pool {} into {} pools:\n{}",
            pool.metadata.name,
            parts.len(),
            lines.collect::<String>()
        ))
    })?;
    super::super::print(&text)
}

async fn find(store: &dyn Datastore, which: &Which) -> Result<IpPool, CliError> {
    if let Some(name) = &which.name {
        let key = Key::new(Kind::IpPool, name.clone());
        return datastore::get::<IpPool>(store, name)
            .await?
            .ok_or(CliError::NoObject { key });
    }
    let cidr = which.cidr.unwrap_or_default();
    let pools = datastore::list::<IpPool>(store).await?;
    let found = pools.into_iter().find(|pool| pool.spec.cidr == cidr);
    found.ok_or(CliError::from(SplitError::NoPool { cidr }))
}

/// The pools that a pool is split into: like it, but for name and range.
fn parts(pool: &IpPool, number: u32) -> Result<Vec<IpPool>, CliError> {
    if number < 2 || !number.is_power_of_two() {
        return Err(SplitError::Number { number }.into());
    }
    let cidr = pool.spec.cidr;
    let default = if cidr.addr().is_ipv4() { 26 } else { 122 };
    let block_size = pool.spec.block_size.unwrap_or(default);
    let length = u32::from(cidr.prefix_len()) + number.trailing_zeros();
    let length = u8::try_from(length).ok().filter(|length| *length <= block_size);
    let subnets = length.and_then(|length| cidr.subnets(length).ok());
    let subnets = subnets.ok_or_else(|| SplitError::TooSmall {
        pool: pool.metadata.name.clone(),
        cidr,
        number,
        block_size,
    });
    let part = |(nth, cidr)| {
        let mut spec = pool.spec.clone();
        spec.cidr = cidr;
        let mut part = IpPool::new(format!("split-{}-{nth}", pool.metadata.name), spec);
        part.metadata.labels.clone_from(&pool.metadata.labels);
        part.metadata.annotations.clone_from(&pool.metadata.annotations);
        part
    };
    Ok(subnets?.enumerate().map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str) -> IpPool {
        let manifest =
            format!("{{metadata: {{name: p}}, spec: {{cidr: {cidr}, ipipMode: Always, later: 1}}}}");
        serde_yaml::from_str(&manifest).unwrap()
    }

    #[test]
    fn the_parts_cover_the_pool_and_are_like_it() {
        let parts = parts(&pool("10.65.0.0/16"), 4).unwrap();
        let ranges: Vec<_> = parts.iter().map(|p| p.spec.cidr.to_string()).collect();
        assert_eq!(
            ranges,
            [
                "10.65.0.0/18",
                "10.65.64.0/18",
                "10.65.128.0/18",
                "10.65.192.0/18"
            ]
        );
        assert_eq!(parts[3].metadata.name, "split-p-3");
        assert_eq!(parts[3].spec.ipip_mode, pool("10.65.0.0/16").spec.ipip_mode);
        assert_eq!(parts[3].spec.unknown["later"], 1);
    }

    #[test]
    fn a_pool_is_split_into_a_power_of_two_of_at_least_a_block_each() {
        for number in [0, 1, 3, 6, 100] {
            assert!(parts(&pool("10.65.0.0/16"), number).is_err(), "{number}");
        }
        assert_eq!(parts(&pool("10.65.0.0/24"), 4).unwrap().len(), 4);
        let error = parts(&pool("10.65.0.0/24"), 8).unwrap_err().to_string();
        assert!(error.contains("10.65.0.0/24") && error.contains("/26"), "{error}");
    }
}
