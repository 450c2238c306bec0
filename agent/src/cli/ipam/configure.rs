//! `culvert ipam configure`: the settings of allocation.

use clap::Args;

use super::super::CliError;
use super::super::store::StoreArguments;
use crate::allocation;
use crate::api::{IpamConfig, IpamConfigSpec, Resource};
use crate::datastore;

/// The name of the only IPAMConfig that counts.
const NAME: &str = "default";

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Settings {
    /// Whether a node hands out addresses of its own blocks only.
    #[arg(long = "strictaffinity", value_name = "true|false", action = clap::ArgAction::Set)]
    strict_affinity: Option<bool>,
    /// Whether a node whose blocks are full claims another.
    #[arg(long = "autoallocateblocks", value_name = "true|false", action = clap::ArgAction::Set)]
    auto_allocate_blocks: Option<bool>,
    /// Most blocks a node may have; 0 for the usual 20. It needs strict affinity.
    #[arg(long, value_name = "NUMBER")]
    max_blocks_per_host: Option<u32>,
    /// Seconds for which a released address rests before it is given out again, 0 to 1200.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=1200))]
    ip_cooldown_seconds: Option<u32>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    store: StoreArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let text = arguments.store.run(async |store| {
        let there = datastore::get::<IpamConfig>(store.as_ref(), NAME).await?;
        let is_new = there.is_none();
        let mut config = there.unwrap_or_else(|| IpamConfig::new(NAME, IpamConfigSpec::default()));
        let text = arguments.settings.apply(&mut config.spec);
        // Refused as a whole before anything is written: the datastore would take it.
        allocation::limits(&config.spec)
            .check()
            .map_err(CliError::Limits)?;
        let object = config.into_object();
        if is_new {
            store.create(object).await?;
        } else {
            store.update(object).await?;
        }
        Ok(text)
    })?;
    super::super::print(&text)
}

impl Settings {
    /// Sets what is given; what calicoctl says of that.
    fn apply(&self, spec: &mut IpamConfigSpec) -> String {
        let mut text = String::new();
        let mut said = |name: &str, value: &dyn std::fmt::Display| {
            text += &format!("Successfully set {name} to: {value}\n");
        };
        if let Some(value) = self.strict_affinity {
            spec.strict_affinity = value;
            said("StrictAffinity", &value);
        }
        if let Some(value) = self.auto_allocate_blocks {
            spec.auto_allocate_blocks = value;
            said("AutoAllocateBlocks", &value);
        }
        if let Some(value) = self.max_blocks_per_host {
            spec.max_blocks_per_host = value;
            said("MaxBlocksPerHost", &value);
        }
        if let Some(value) = self.ip_cooldown_seconds {
            spec.unknown.insert("ipCooldownSeconds".to_owned(), value.into());
            said("IPCooldownSeconds", &value);
        }
        text
    }
}
