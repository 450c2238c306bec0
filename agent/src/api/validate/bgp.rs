//! What BGPConfiguration, BGPPeer and BGPFilter may hold.

use std::net::IpAddr;
use std::time::Duration;

use super::{FieldError, check_range};
use crate::api::{
    AsNumber, BgpConfigurationSpec, BgpFilterSpec, BgpPassword, BgpPeerSpec, FilterAction, FilterOperation,
    FilterRule, GoDuration, ServiceCidr, community,
};
use crate::selector::Selector;

/// RFC 4724 §3: the restart time has twelve bits.
const RESTART_TIME_MAX: Duration = Duration::from_secs(4095);

/// The priorities that Calico allows.
const PRIORITIES: std::ops::RangeInclusive<u32> = 1..=2_147_483_646;

/// The most operations of a rule, as Calico has it.
const OPERATIONS_MAX: usize = 10;

const COMMUNITY: &str = "allowed is AA:NN with numbers up to 65535, or AA:NN:MM with numbers up to 4294967295, or rt: or ro: and AA:NN";

pub(super) fn configuration(spec: &BgpConfigurationSpec) -> Result<(), FieldError> {
    as_number("spec.asNumber", spec.as_number)?;
    if spec.listen_port == Some(0) {
        return Err(FieldError::new("spec.listenPort", 0, "1 to 65535 is allowed"));
    }
    password("spec.nodeMeshPassword", spec.node_mesh_password.as_ref())?;
    restart_time(
        "spec.nodeMeshMaxRestartTime",
        spec.node_mesh_max_restart_time.as_ref(),
    )?;
    priority("spec.ipv4NormalRoutePriority", spec.ipv4_normal_route_priority)?;
    priority("spec.ipv6NormalRoutePriority", spec.ipv6_normal_route_priority)?;
    for (field, ranges) in [
        ("spec.serviceClusterIPs", &spec.service_cluster_ips),
        ("spec.serviceExternalIPs", &spec.service_external_ips),
        ("spec.serviceLoadBalancerIPs", &spec.service_load_balancer_ips),
    ] {
        service_ranges(field, ranges)?;
    }
    for (nth, named) in spec.communities.iter().enumerate() {
        let field = |name: &str| format!("spec.communities[{nth}].{name}");
        if named.name.is_empty() {
            return Err(FieldError::new(
                field("name"),
                "empty",
                "a community needs a name",
            ));
        }
        if community(&named.value).is_none() {
            return Err(FieldError::new(
                field("value"),
                format!("{:?}", named.value),
                COMMUNITY,
            ));
        }
        if spec
            .communities
            .iter()
            .take(nth)
            .any(|before| before.name == named.name)
        {
            let allowed = "another community has this name already: give each its own";
            return Err(FieldError::new(field("name"), &named.name, allowed));
        }
    }
    for (nth, advertised) in spec.prefix_advertisements.iter().enumerate() {
        check_range(format!("spec.prefixAdvertisements[{nth}].cidr"), advertised.cidr)?;
    }
    Ok(())
}

fn service_ranges(field: &str, ranges: &[ServiceCidr]) -> Result<(), FieldError> {
    let mut numbered = ranges.iter().enumerate();
    numbered.try_for_each(|(nth, range)| check_range(format!("{field}[{nth}].cidr"), range.cidr))
}

pub(super) fn peer(spec: &BgpPeerSpec) -> Result<(), FieldError> {
    let (node, node_selector) = (given(spec.node.as_ref()), given(spec.node_selector.as_ref()));
    if let (Some(node), Some(_)) = (node, node_selector) {
        let allowed = "nodeSelector is given as well: leave one of them out";
        return Err(FieldError::new("spec.node", node, allowed));
    }
    selector("spec.nodeSelector", spec.node_selector.as_deref())?;
    selector("spec.peerSelector", spec.peer_selector.as_deref())?;
    let is_workload = given(spec.local_workload_selector.as_ref()).is_some();
    who(spec, given(spec.peer_selector.as_ref()), is_workload)?;
    as_number("spec.localASNumber", spec.local_as_number)?;
    password("spec.password", spec.password.as_ref())?;
    restart_time("spec.maxRestartTime", spec.max_restart_time.as_ref())?;
    if let Some(every) = spec
        .keepalive_time
        .as_ref()
        .filter(|every| every.get() < Duration::from_secs(1))
    {
        let allowed = "1s and more is allowed; leave it out for a third of the hold time";
        return Err(FieldError::new("spec.keepaliveTime", every, allowed));
    }
    for (field, value, most) in [
        (
            "spec.numAllowedLocalASNumbers",
            spec.num_allowed_local_as_numbers,
            0..=255,
        ),
        ("spec.ttlSecurity", spec.ttl_security, 0..=254),
    ] {
        if let Some(value) = value.filter(|value| !most.contains(value)) {
            let allowed = format!("{} to {} is allowed", most.start(), most.end());
            return Err(FieldError::new(field, value, allowed));
        }
    }
    Ok(())
}

/// A text that is not empty.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}

/// That it says who the peer is, in one way.
fn who(spec: &BgpPeerSpec, peer_selector: Option<&str>, is_workload: bool) -> Result<(), FieldError> {
    if let Some(selector) = peer_selector {
        let allowed = "a peerSelector stands in place of peerIP and asNumber: leave those out";
        if spec.peer_ip.is_some() || spec.as_number.is_some_and(|asn| asn.0 != 0) {
            return Err(FieldError::new("spec.peerSelector", selector, allowed));
        }
        return Ok(());
    }
    let Some(peer) = spec.peer_ip else {
        if is_workload {
            return Ok(());
        }
        let allowed = "peerIP or peerSelector must say who the peer is";
        return Err(FieldError::new("spec.peerIP", "missing", allowed));
    };
    if !is_unicast(peer.address) {
        let allowed = "only the unicast address of another host is allowed";
        return Err(FieldError::new("spec.peerIP", peer, allowed));
    }
    let Some(asn) = spec.as_number else {
        let allowed = format!("the AS of the peer {peer} must be given, 1 to 4294967295");
        return Err(FieldError::new("spec.asNumber", "missing", allowed));
    };
    as_number("spec.asNumber", Some(asn))?;
    if let Some(gateway) = spec.reachable_by
        && gateway.is_ipv4() != peer.address.is_ipv4()
    {
        let allowed = format!("only an address of the family of {} is allowed", peer.address);
        return Err(FieldError::new("spec.reachableBy", gateway, allowed));
    }
    Ok(())
}

fn is_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

pub(super) fn filter(spec: &BgpFilterSpec) -> Result<(), FieldError> {
    for (list, rules, bits) in [
        ("exportV4", &spec.export_v4, 32),
        ("importV4", &spec.import_v4, 32),
        ("exportV6", &spec.export_v6, 128),
        ("importV6", &spec.import_v6, 128),
    ] {
        for (nth, rule) in rules.iter().enumerate() {
            check_rule(&format!("spec.{list}[{nth}]"), rule, bits)?;
        }
    }
    Ok(())
}

fn check_rule(at: &str, rule: &FilterRule, bits: u8) -> Result<(), FieldError> {
    let field = |name: &str| format!("{at}.{name}");
    check_prefix(at, rule, bits)?;
    if let Some(wanted) = &rule.communities {
        let [value] = wanted.values.as_slice() else {
            let allowed = "exactly one is allowed";
            let count = format!("a list of {}", wanted.values.len());
            return Err(FieldError::new(field("communities.values"), count, allowed));
        };
        check_community(field("communities.values[0]"), value)?;
    }
    for (nth, asn) in rule.as_path_prefix.iter().enumerate() {
        as_number(field(&format!("asPathPrefix[{nth}]")), Some(*asn))?;
    }
    priority(field("priority"), rule.priority)?;
    let count = rule.operations.len();
    if count > 0 && rule.action == FilterAction::Reject {
        let allowed = "a route that is rejected is not changed: leave them out, or accept it";
        return Err(FieldError::new(
            field("operations"),
            format!("a list of {count}"),
            allowed,
        ));
    }
    if count > OPERATIONS_MAX {
        let allowed = format!("at most {OPERATIONS_MAX} are allowed");
        return Err(FieldError::new(
            field("operations"),
            format!("a list of {count}"),
            allowed,
        ));
    }
    let mut numbered = rule.operations.iter().enumerate();
    numbered
        .try_for_each(|(nth, operation)| check_operation(&field(&format!("operations[{nth}]")), operation))
}

fn check_prefix(at: &str, rule: &FilterRule, bits: u8) -> Result<(), FieldError> {
    let field = |name: &str| format!("{at}.{name}");
    let Some(cidr) = rule.cidr else {
        let needs = "it is not allowed without cidr: give both or neither";
        return match (rule.match_operator, &rule.prefix_length) {
            (Some(operator), _) => {
                let operator = format!("{operator:?}");
                Err(FieldError::new(field("matchOperator"), operator, needs))
            }
            (None, Some(_)) => Err(FieldError::new(field("prefixLength"), "given", needs)),
            (None, None) => Ok(()),
        };
    };
    if cidr.max_prefix_len() != bits {
        let family = if bits == 32 { "IPv4" } else { "IPv6" };
        let allowed = format!("this list is for {family} routes: move the rule to the other list");
        return Err(FieldError::new(field("cidr"), cidr, allowed));
    }
    if rule.match_operator.is_none() {
        let allowed = format!("how to compare with {cidr} must be given: Equal, NotEqual, In or NotIn");
        return Err(FieldError::new(field("matchOperator"), "missing", allowed));
    }
    let Some(lengths) = &rule.prefix_length else {
        return Ok(());
    };
    for (name, bound) in [("min", lengths.min), ("max", lengths.max)] {
        if let Some(bound) = bound.filter(|bound| *bound > bits) {
            let field = field(&format!("prefixLength.{name}"));
            return Err(FieldError::new(field, bound, format!("0 to {bits} is allowed")));
        }
    }
    let (least, most) = (
        lengths.min.unwrap_or(cidr.prefix_len()),
        lengths.max.unwrap_or(bits),
    );
    if least > most {
        let allowed = format!("nothing is as long as {least} at least and {most} at most");
        let value = format!("{least} to {most}");
        return Err(FieldError::new(field("prefixLength"), value, allowed));
    }
    Ok(())
}

fn check_operation(at: &str, operation: &FilterOperation) -> Result<(), FieldError> {
    let set = [
        operation.add_community.is_some(),
        operation.prepend_as_path.is_some(),
        operation.set_priority.is_some(),
    ];
    let count = set.iter().filter(|set| **set).count();
    if count != 1 {
        let allowed = "exactly one of addCommunity, prependASPath and setPriority is allowed";
        return Err(FieldError::new(
            at.to_owned(),
            format!("{count} operations"),
            allowed,
        ));
    }
    if let Some(add) = &operation.add_community {
        check_community(format!("{at}.addCommunity.value"), &add.value)?;
    }
    if let Some(prepend) = &operation.prepend_as_path {
        if prepend.prefix.is_empty() {
            let field = format!("{at}.prependASPath.prefix");
            return Err(FieldError::new(field, "empty", "it needs an AS number"));
        }
        for (nth, asn) in prepend.prefix.iter().enumerate() {
            as_number(format!("{at}.prependASPath.prefix[{nth}]"), Some(*asn))?;
        }
    }
    let to = operation.set_priority.as_ref().map(|set| set.value);
    priority(format!("{at}.setPriority.value"), to)
}

fn check_community(field: String, value: &str) -> Result<(), FieldError> {
    match community(value) {
        Some(_) => Ok(()),
        None => Err(FieldError::new(field, format!("{value:?}"), COMMUNITY)),
    }
}

fn selector(field: &'static str, text: Option<&str>) -> Result<(), FieldError> {
    match Selector::parse(text.unwrap_or_default()) {
        Ok(_) => Ok(()),
        Err(error) => Err(FieldError::new(
            field,
            text.unwrap_or_default(),
            error.to_string(),
        )),
    }
}

/// RFC 7607 §2: AS 0 is reserved.
fn as_number(
    field: impl Into<std::borrow::Cow<'static, str>>,
    number: Option<AsNumber>,
) -> Result<(), FieldError> {
    match number {
        Some(AsNumber(0)) => Err(FieldError::new(field, 0, "1 to 4294967295 is allowed")),
        Some(_) | None => Ok(()),
    }
}

fn priority(field: impl Into<std::borrow::Cow<'static, str>>, value: Option<u32>) -> Result<(), FieldError> {
    match value.filter(|value| !PRIORITIES.contains(value)) {
        Some(value) => {
            let allowed = format!("{} to {} is allowed", PRIORITIES.start(), PRIORITIES.end());
            Err(FieldError::new(field, value, allowed))
        }
        None => Ok(()),
    }
}

fn restart_time(field: &'static str, time: Option<&GoDuration>) -> Result<(), FieldError> {
    match time.filter(|time| time.get() > RESTART_TIME_MAX) {
        Some(time) => {
            let allowed = format!("at most {}s is allowed", RESTART_TIME_MAX.as_secs());
            Err(FieldError::new(field, time, allowed))
        }
        None => Ok(()),
    }
}

fn password(field: &str, password: Option<&BgpPassword>) -> Result<(), FieldError> {
    let Some(password) = password else { return Ok(()) };
    let Some(key) = &password.secret_key_ref else {
        let allowed = "the Secret and the key in it that hold the password must be named";
        return Err(FieldError::new(
            format!("{field}.secretKeyRef"),
            "missing",
            allowed,
        ));
    };
    for (name, value) in [("name", &key.name), ("key", &key.key)] {
        if value.is_empty() {
            let allowed = "the Secret and the key in it that hold the password must be named";
            let field = format!("{field}.secretKeyRef.{name}");
            return Err(FieldError::new(field, "empty", allowed));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
