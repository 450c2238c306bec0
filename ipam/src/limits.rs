//! Settings of allocation (Calico's IPAMConfig).

/// Blocks a node may have when the configuration gives no number (Calico's `autoAssign`).
const DEFAULT_MAX_BLOCKS_PER_HOST: u32 = 20;

/// Longest cooldown that Calico's CRD allows, in seconds.
const MAX_COOLDOWN_SECONDS: u32 = 1200;

/// Settings of allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A node hands out addresses of its own blocks only; without it, it borrows from others' when no block is left.
    pub strict_affinity: bool,
    /// A node whose blocks are full claims another.
    pub auto_allocate_blocks: bool,
    /// Most blocks a node may have in the pools of a request; 0 means 20.
    pub max_blocks_per_host: u32,
    /// Seconds for which a released address rests before it is free, 0 to 1200.
    pub cooldown_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: 0,
            cooldown_seconds: 0,
        }
    }
}

impl Limits {
    /// Most blocks a node may have in the pools of a request.
    #[must_use]
    pub fn max_blocks(&self) -> u32 {
        match self.max_blocks_per_host {
            0 => DEFAULT_MAX_BLOCKS_PER_HOST,
            given => given,
        }
    }

    /// Checks the rules between the fields, which Calico's library has and its CRD has not: an object that breaks them can
    /// be in the datastore. Allocation then goes by each field as it stands.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), LimitsError> {
        if !self.strict_affinity && !self.auto_allocate_blocks {
            return Err(LimitsError::NothingToAllocateFrom);
        }
        if self.max_blocks_per_host > 0 && !self.strict_affinity {
            return Err(LimitsError::LimitWithoutStrictAffinity {
                max_blocks_per_host: self.max_blocks_per_host,
            });
        }
        if self.cooldown_seconds > MAX_COOLDOWN_SECONDS {
            return Err(LimitsError::Cooldown {
                seconds: self.cooldown_seconds,
            });
        }
        Ok(())
    }
}

/// A rule between the fields of an IPAMConfig that is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Nodes may neither claim a block of their own nor be kept to those they have.
    #[error(
        "IPAMConfig: strictAffinity is false and autoAllocateBlocks is false, so that a node without a block gets none; \
         set one of them to true"
    )]
    NothingToAllocateFrom,
    /// The limit would be met before anything is borrowed, which is what strictAffinity false promises.
    #[error(
        "IPAMConfig: maxBlocksPerHost is {max_blocks_per_host} and strictAffinity is false, but the limit ends an allocation \
         before it borrows; set strictAffinity to true, or maxBlocksPerHost to 0"
    )]
    LimitWithoutStrictAffinity {
        /// What it says.
        max_blocks_per_host: u32,
    },
    /// It rests too long.
    #[error("IPAMConfig: ipCooldownSeconds is {seconds}, the most is {MAX_COOLDOWN_SECONDS}; lower it")]
    Cooldown {
        /// What it says.
        seconds: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_between_fields_are_told_with_both_values() {
        let told = |limits: Limits| limits.check().err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(told(Limits::default()), "");
        let stuck = Limits {
            auto_allocate_blocks: false,
            ..Limits::default()
        };
        assert!(told(stuck).contains("strictAffinity is false and autoAllocateBlocks is false"));
        let strict = Limits {
            strict_affinity: true,
            max_blocks_per_host: 3,
            ..stuck
        };
        assert_eq!(told(strict), "");
        let limited = Limits {
            max_blocks_per_host: 3,
            ..Limits::default()
        };
        assert!(told(limited).contains("maxBlocksPerHost is 3 and strictAffinity is false"));
        let cold = Limits {
            cooldown_seconds: 1201,
            ..Limits::default()
        };
        assert!(told(cold).contains("ipCooldownSeconds is 1201, the most is 1200"));
    }
}
