//! Filters: ordered rules, the first of which that applies decides.

use std::fmt;
use std::sync::Arc;

use super::rule::{Action, PeerType, Route, Rule, Source};
use crate::id::Prefix;
use crate::wire::message::PathAttributes;

/// Rules under a name, tried in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// What people call it; a route that it keeps out is told of with it.
    pub name: Arc<str>,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// Filters, tried in order: the first rule that applies decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The filters. The same one may serve many peers.
    pub filters: Vec<Arc<Filter>>,
    /// What becomes of a route for which no rule decides.
    pub otherwise: Otherwise,
}

/// What becomes of a route for which no rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// It is let through.
    Accept,
    /// It is kept out.
    Reject,
}

impl Chain {
    /// Lets everything through as it is.
    pub const ACCEPT: Chain = Chain {
        filters: Vec::new(),
        otherwise: Otherwise::Accept,
    };

    /// Keeps everything out.
    pub const REJECT: Chain = Chain {
        filters: Vec::new(),
        otherwise: Otherwise::Reject,
    };

    /// What becomes of a route. Where nothing changes, the path that comes back is the one that was given, shared.
    ///
    /// # Errors
    /// Which rule kept it out.
    pub fn evaluate(
        &self,
        prefix: Prefix,
        source: Source,
        peer: PeerType,
        attributes: &Arc<PathAttributes>,
    ) -> Result<Arc<PathAttributes>, RejectedBy> {
        let mut attributes = Arc::clone(attributes);
        for filter in &self.filters {
            for (nth, rule) in filter.rules.iter().enumerate() {
                let route = Route {
                    prefix,
                    source,
                    peer,
                    attributes: &attributes,
                };
                if !rule.matching.is_met_by(route) {
                    continue;
                }
                let (operations, last) = match &rule.action {
                    Action::Accept(operations) => (operations, true),
                    Action::Continue(operations) => (operations, false),
                    Action::Reject => {
                        return Err(RejectedBy::Rule {
                            filter: Arc::clone(&filter.name),
                            rule: nth + 1,
                        });
                    }
                };
                for operation in operations {
                    operation.apply(&mut attributes);
                }
                if last {
                    return Ok(attributes);
                }
            }
        }
        match self.otherwise {
            Otherwise::Accept => Ok(attributes),
            Otherwise::Reject => Err(RejectedBy::Default),
        }
    }
}

/// The chains of the two families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// For IPv4 destinations.
    pub ipv4: Chain,
    /// For IPv6 destinations.
    pub ipv6: Chain,
}

impl Policy {
    /// Lets everything through as it is.
    pub const ACCEPT: Policy = Policy {
        ipv4: Chain::ACCEPT,
        ipv6: Chain::ACCEPT,
    };

    /// Keeps everything out.
    pub const REJECT: Policy = Policy {
        ipv4: Chain::REJECT,
        ipv6: Chain::REJECT,
    };

    /// What becomes of a route: see [`Chain::evaluate`].
    ///
    /// # Errors
    /// Which rule kept it out.
    pub fn evaluate(
        &self,
        prefix: Prefix,
        source: Source,
        peer: PeerType,
        attributes: &Arc<PathAttributes>,
    ) -> Result<Arc<PathAttributes>, RejectedBy> {
        let chain = if prefix.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        chain.evaluate(prefix, source, peer, attributes)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::ACCEPT
    }
}

/// What kept a route out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RejectedBy {
    /// A rule of a filter.
    Rule {
        /// The filter's name.
        filter: Arc<str>,
        /// Which of its rules: 1 for the first.
        rule: usize,
    },
    /// No rule let it through.
    Default,
}

impl fmt::Display for RejectedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { filter, rule } => write!(f, "rule {rule} of the filter {filter} rejects it"),
            Self::Default => f.write_str("no filter lets it through"),
        }
    }
}

#[cfg(test)]
mod tests;
