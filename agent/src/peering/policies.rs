//! The policies of peers: BGPFilters, communities by prefix, and what Calico lets out where no filter decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_bgp::config::PeerConfig;
use culvert_bgp::id::{Asn, Prefix};
use culvert_bgp::policy::filter::{Chain, Filter, Otherwise, Policy};
use culvert_bgp::policy::rule::{
    Action, Community, Match, Operation, Operator, PeerType, PrefixMatch, Rule, Source,
};
use ipnet::IpNet;

use super::{EXCLUDE_LABEL, Fault, Local, Problem};
use crate::api::{
    BgpConfigurationSpec, BgpFilterSpec, FilterAction, FilterOperation, FilterRule, MatchOperator,
    MatchSource, PeerTypeMatch, community,
};
use crate::cluster::Cluster;

/// The name of the rules that apply where no BGPFilter decides.
const CALICO: &str = "calico";

/// Priority and LOCAL_PREF of a route add up to this (Calico: `krt_metric = 2147483647 - bgp_local_pref`).
const PRIORITY_SUM: u32 = 2_147_483_647;

/// The priority of an ordinary route.
const NORMAL_PRIORITY: u32 = 1024;

/// The LOCAL_PREF of a route that was given none: of an ordinary priority, too.
const DEFAULT_LOCAL_PREF: u32 = 100;

/// The two families, as the lists of a BGPFilter are by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl Version {
    fn has(self, net: &IpNet) -> bool {
        matches!((self, net), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }
}

/// What is let in, where that is not all; and what is let out.
type Made = (Option<Arc<Policy>>, Arc<Policy>);

/// Makes the policies of peers; equal ones are shared.
pub(super) struct Policies<'a> {
    cluster: &'a Cluster,
    /// The rules before and after those of the BGPFilters, for each family.
    frames: [Frame; 2],
    /// What was made for each list of BGPFilters.
    made: BTreeMap<Vec<String>, Made>,
    problems: BTreeSet<Problem>,
}

/// The rules around those of the BGPFilters, for what is let out.
struct Frame {
    before: Option<Arc<Filter>>,
    after: Arc<Filter>,
}

impl<'a> Policies<'a> {
    pub(super) fn new(local: Local<'_>, cluster: &'a Cluster) -> Self {
        let mut problems = BTreeSet::new();
        let communities = advertised_communities(local, cluster, &mut problems);
        let frame = |version| Frame {
            before: normal_priority(local, cluster, version),
            after: Arc::new(calico(local, cluster, version, &communities)),
        };
        Self {
            cluster,
            frames: [frame(Version::V4), frame(Version::V6)],
            made: BTreeMap::new(),
            problems,
        }
    }

    /// Gives a peer the policies that these BGPFilters make. `resource` is what names them.
    pub(super) fn apply(&mut self, resource: &str, filters: &[String], config: &mut PeerConfig) {
        for name in filters {
            if self.cluster.bgp().filter(name).is_none() {
                self.problems.insert(Problem {
                    resource: resource.to_owned(),
                    fault: Fault::NoFilter { name: name.clone() },
                });
            }
        }
        if !self.made.contains_key(filters) {
            let made = self.make(filters);
            self.made.insert(filters.to_vec(), made);
        }
        if let Some((import, export)) = self.made.get(filters) {
            config.import.clone_from(import);
            config.export = Some(Arc::clone(export));
        }
    }

    pub(super) fn into_problems(self) -> BTreeSet<Problem> {
        self.problems
    }

    fn make(&mut self, filters: &[String]) -> Made {
        let cluster = self.cluster;
        let named = || {
            filters
                .iter()
                .filter_map(|name| Some((name.as_str(), cluster.bgp().filter(name)?)))
        };
        let mut list = |version, pick: fn(&BgpFilterSpec) -> &Vec<FilterRule>, field| -> Vec<Arc<Filter>> {
            let with_rules = named().filter(|(_, filter)| !pick(filter).is_empty());
            with_rules
                .map(|(name, filter)| {
                    Arc::new(self::filter(
                        name,
                        field,
                        version,
                        pick(filter),
                        &mut self.problems,
                    ))
                })
                .collect()
        };
        let import = [
            list(Version::V4, |f| &f.import_v4, "importV4"),
            list(Version::V6, |f| &f.import_v6, "importV6"),
        ];
        let export = [
            list(Version::V4, |f| &f.export_v4, "exportV4"),
            list(Version::V6, |f| &f.export_v6, "exportV6"),
        ];
        let import = if import.iter().all(Vec::is_empty) {
            None
        } else {
            let [ipv4, ipv6] = import.map(|filters| Chain {
                filters,
                otherwise: Otherwise::Accept,
            });
            Some(Arc::new(Policy { ipv4, ipv6 }))
        };
        let [v4, v6] = &self.frames;
        let [for_v4, for_v6] = export;
        let chain = |frame: &Frame, filters: Vec<Arc<Filter>>| {
            let before = frame.before.iter().map(Arc::clone);
            let after = std::iter::once(Arc::clone(&frame.after));
            Chain {
                filters: before.chain(filters).chain(after).collect(),
                otherwise: Otherwise::Reject,
            }
        };
        let export = Policy {
            ipv4: chain(v4, for_v4),
            ipv6: chain(v6, for_v6),
        };
        (import, Arc::new(export))
    }
}

/// Own routes go out with the priority that the cluster gives ordinary ones, if it gives them one.
fn normal_priority(local: Local<'_>, cluster: &Cluster, version: Version) -> Option<Arc<Filter>> {
    let priority = cluster.bgp().setting(local.node, |bgp| match version {
        Version::V4 => bgp.ipv4_normal_route_priority,
        Version::V6 => bgp.ipv6_normal_route_priority,
    })?;
    let matching = Match {
        source: Some(Source::Own),
        ..Match::default()
    };
    let set = Operation::SetLocalPref(PRIORITY_SUM.saturating_sub(priority));
    let action = Action::Continue(vec![set]);
    Some(Arc::new(Filter {
        name: CALICO.into(),
        rules: vec![Rule { matching, action }],
    }))
}

/// What is let out where no BGPFilter decides (Calico: `calico_export_to_bgp_peers`): own routes, and those of pools, with
/// their communities; by a route reflector also those of services. Routes from elsewhere stay here.
fn calico(
    local: Local<'_>,
    cluster: &Cluster,
    version: Version,
    communities: &[(IpNet, Vec<Community>)],
) -> Filter {
    let inside = |range: IpNet| Match {
        prefix: Some(PrefixMatch::new(Operator::In, Prefix::new(range), (None, None))),
        ..Match::default()
    };
    let rule = |matching, action| Rule { matching, action };
    let accept = || Action::Accept(Vec::new());
    let ours = |range: &IpNet| version.has(range);
    let (closed, open): (Vec<_>, Vec<_>) = cluster
        .pools()
        .map(|(_, pool)| (pool.cidr, pool.disable_bgp_export))
        .filter(|(range, _)| ours(range))
        .partition(|(_, closed)| *closed);
    let mut rules = Vec::new();
    rules.extend(
        closed
            .into_iter()
            .map(|(range, _)| rule(inside(range), Action::Reject)),
    );
    let tagged = communities.iter().filter(|(range, _)| ours(range));
    rules.extend(tagged.map(|(range, communities)| {
        let add = communities
            .iter()
            .map(|community| Operation::AddCommunity(*community));
        rule(inside(*range), Action::Continue(add.collect()))
    }));
    let own = Match {
        source: Some(Source::Own),
        ..Match::default()
    };
    rules.push(rule(own, accept()));
    rules.extend(open.into_iter().map(|(range, _)| rule(inside(range), accept())));
    let node = cluster.node(local.node);
    let reflects = node.is_some_and(|node| node.reflector_cluster.is_some());
    let excluded = node.is_some_and(|node| node.labels.get(EXCLUDE_LABEL).is_some());
    let bgp = cluster.bgp().configuration();
    let mut services = Vec::new();
    if reflects {
        services.extend(&bgp.service_load_balancer_ips);
        services.extend(&bgp.service_external_ips);
    }
    if !excluded {
        services.extend(&bgp.service_cluster_ips);
    }
    let ranges = services
        .into_iter()
        .map(|range| range.cidr)
        .filter(|range| version.has(range));
    rules.extend(ranges.map(|range| rule(inside(range), accept())));
    Filter {
        name: CALICO.into(),
        rules,
    }
}

/// The communities by prefix, those of the node in place of those of the cluster.
fn advertised_communities(
    local: Local<'_>,
    cluster: &Cluster,
    problems: &mut BTreeSet<Problem>,
) -> Vec<(IpNet, Vec<Community>)> {
    let bgp = cluster.bgp();
    let of_node = bgp
        .of_node(local.node)
        .filter(|bgp| !bgp.prefix_advertisements.is_empty());
    let name = if of_node.is_some() {
        format!("node.{}", local.node)
    } else {
        "default".to_owned()
    };
    let advertised = of_node.unwrap_or(bgp.configuration());
    let defined = |spec: &BgpConfigurationSpec, name: &str| {
        let named = spec.communities.iter().find(|named| named.name == name)?;
        community(&named.value)
    };
    let mut out = Vec::new();
    for advertisement in &advertised.prefix_advertisements {
        let mut communities = Vec::new();
        for wanted in &advertisement.communities {
            let found = defined(advertised, wanted)
                .or_else(|| defined(bgp.configuration(), wanted))
                .or_else(|| community(wanted));
            match found {
                Some(community) => communities.push(community),
                None => {
                    problems.insert(Problem {
                        resource: format!("BGPConfiguration {name}"),
                        fault: Fault::NoCommunity {
                            range: advertisement.cidr.to_string(),
                            name: wanted.clone(),
                        },
                    });
                }
            }
        }
        out.push((advertisement.cidr, communities));
    }
    out
}

/// One list of a BGPFilter.
fn filter(
    name: &str,
    field: &str,
    version: Version,
    rules: &[FilterRule],
    problems: &mut BTreeSet<Problem>,
) -> Filter {
    let mut out = Vec::new();
    for (nth, rule) in rules.iter().enumerate() {
        match convert(rule, version, format!("{field}[{nth}]")) {
            Ok(rule) => out.push(rule),
            Err(fault) => {
                problems.insert(Problem {
                    resource: format!("BGPFilter {name}"),
                    fault,
                });
            }
        }
    }
    Filter {
        name: name.into(),
        rules: out,
    }
}

/// One rule. `place` names it.
fn convert(rule: &FilterRule, version: Version, place: String) -> Result<Rule, Fault> {
    if let Some(interface) = &rule.interface {
        return Err(Fault::Interface {
            rule: place,
            interface: interface.clone(),
        });
    }
    let wrong = || Fault::Rule { rule: place.clone() };
    let prefix = prefix_match(rule, version).map_err(|()| wrong())?;
    let wanted = rule
        .communities
        .as_ref()
        .map(|wanted| match wanted.values.as_slice() {
            [value] => community(value).ok_or_else(wrong),
            _ => Err(wrong()),
        })
        .transpose()?;
    let numbers = |numbers: &[crate::api::AsNumber]| -> Result<Vec<Asn>, Fault> {
        let numbers = numbers.iter().map(|number| Asn::new(number.0).ok_or_else(wrong));
        numbers.collect()
    };
    let operation = |operation: &FilterOperation| -> Result<Operation, Fault> {
        match (
            &operation.add_community,
            &operation.prepend_as_path,
            &operation.set_priority,
        ) {
            (Some(add), None, None) => community(&add.value)
                .map(Operation::AddCommunity)
                .ok_or_else(wrong),
            (None, Some(prepend), None) => Ok(Operation::PrependAsPath(numbers(&prepend.prefix)?)),
            (None, None, Some(set)) => Ok(Operation::SetLocalPref(local_pref(set.value))),
            _ => Err(wrong()),
        }
    };
    let action = match rule.action {
        FilterAction::Accept => {
            Action::Accept(rule.operations.iter().map(operation).collect::<Result<_, _>>()?)
        }
        FilterAction::Reject => Action::Reject,
    };
    let matching = Match {
        prefix,
        source: rule.source.map(|MatchSource::RemotePeers| Source::Peers),
        peer: rule.peer_type.map(|peer| match peer {
            PeerTypeMatch::External => PeerType::External,
            PeerTypeMatch::Internal => PeerType::Internal,
        }),
        community: wanted,
        as_path_prefix: numbers(&rule.as_path_prefix)?,
        local_pref: rule.priority.map(local_prefs).unwrap_or_default(),
    };
    Ok(Rule { matching, action })
}

/// The condition on the destination.
fn prefix_match(rule: &FilterRule, version: Version) -> Result<Option<PrefixMatch>, ()> {
    match (rule.cidr, rule.match_operator) {
        (None, None) => Ok(None),
        (Some(cidr), Some(operator)) if version.has(&cidr) => {
            let lengths = rule.prefix_length.as_ref();
            let bounds = (
                lengths.and_then(|lengths| lengths.min),
                lengths.and_then(|lengths| lengths.max),
            );
            let condition = PrefixMatch::new(operator_of(operator), Prefix::new(cidr), bounds);
            Ok(Some(condition))
        }
        _ => Err(()),
    }
}

fn operator_of(operator: MatchOperator) -> Operator {
    match operator {
        MatchOperator::Equal => Operator::Equal,
        MatchOperator::NotEqual => Operator::NotEqual,
        MatchOperator::In => Operator::In,
        MatchOperator::NotIn => Operator::NotIn,
    }
}

/// The LOCAL_PREF that stands for a priority.
fn local_pref(priority: u32) -> u32 {
    PRIORITY_SUM.saturating_sub(priority)
}

/// Those that a route of this priority may have: one that was given none is an ordinary one.
fn local_prefs(priority: u32) -> Vec<u32> {
    let default = (priority == NORMAL_PRIORITY).then_some(DEFAULT_LOCAL_PREF);
    default.into_iter().chain([local_pref(priority)]).collect()
}
