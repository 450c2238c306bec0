//! IPAMConfig: settings of address allocation; there is one, named `default`.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Custom, UnknownFields};

/// Settings of address allocation.
pub type IpamConfig = Custom<IpamConfigSpec>;

/// What an IPAMConfig says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamConfigSpec {
    /// A node hands out addresses of its own blocks only.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub strict_affinity: bool,
    /// A node whose blocks are full claims another.
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub auto_allocate_blocks: bool,
    /// Most blocks a node may have; 0 means Calico's limit of 20.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub max_blocks_per_host: u32,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

fn yes() -> bool {
    true
}

fn null_is_yes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(yes))
}

impl Default for IpamConfigSpec {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: 0,
            unknown: UnknownFields::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_of_calico_are_written_back_with_all_that_they_say() {
        let written = json!({
            "metadata": {"name": "default", "uid": "u", "ownerReferences": [{"kind": "Installation", "name": "default"}]},
            "spec": {"strictAffinity": true, "autoAllocateBlocks": false, "maxBlocksPerHost": 3,
                "kubeVirtVMAddressPersistence": "Disabled", "ipCooldownSeconds": 1200, "newer": {"x": [null, 9_007_199_254_740_993_u64]}},
        });
        let config: IpamConfig = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(
            (config.spec.strict_affinity, config.spec.auto_allocate_blocks),
            (true, false)
        );
        assert_eq!(serde_json::to_value(&config).unwrap(), written);
    }

    #[test]
    fn what_is_null_is_what_it_would_be_if_nothing_were_said() {
        let nulls = json!({"strictAffinity": null, "autoAllocateBlocks": null, "maxBlocksPerHost": null});
        let spec: IpamConfigSpec = serde_json::from_value(nulls).unwrap();
        assert_eq!(spec, IpamConfigSpec::default());
    }
}
