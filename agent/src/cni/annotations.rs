//! What annotations of a pod and of its namespace ask for, as Calico's plugin reads them.
//!
//! A pod may name its addresses (`ipAddrs`) or the pools that they are to come from (`ipv4pools`, `ipv6pools`); a namespace
//! may name pools for all its pods. The pod's word counts before its namespace's, and addresses before pools.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_ipam::allocator::Wanted;
use culvert_ipam::pool::Family;
use ipnet::IpNet;

/// Addresses of pools that the pod is to have, at most one a family: a JSON list of text.
const ADDRESSES: &str = "cni.projectcalico.org/ipAddrs";
/// Addresses that nobody allocates. Calico takes them where its configuration allows it.
const ADDRESSES_WITHOUT_IPAM: &str = "cni.projectcalico.org/ipAddrsNoIpam";

/// The families of which a pod gets an address: IPv6 where the cluster has a pool of it and this node is known by one.
pub(super) fn families(with_ipv6: bool) -> &'static [Family] {
    if with_ipv6 {
        &[Family::V4, Family::V6]
    } else {
        &[Family::V4]
    }
}

type Annotations = BTreeMap<String, String>;

/// Why what is asked for is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnnotationError {
    #[error(
        "annotation {ADDRESSES_WITHOUT_IPAM} is not supported: nobody would know whose the address is; name one of an IPPool in \
         {ADDRESSES} instead"
    )]
    WithoutIpam,
    #[error(
        "annotation {annotation} of the {of} is {value:?}, which is no JSON list of text such as [{example:?}]"
    )]
    Syntax {
        annotation: &'static str,
        of: &'static str,
        value: String,
        example: &'static str,
    },
    #[error("annotation {annotation} of the {of} is an empty list; name something, or remove the annotation")]
    Empty {
        annotation: &'static str,
        of: &'static str,
    },
    #[error("annotation {ADDRESSES} of the pod names {value:?}, which is no IP address")]
    NoAddress { value: String },
    #[error(
        "annotation {ADDRESSES} of the pod names {first} and {second}; a pod has one {family} address: name one"
    )]
    TwoAddresses {
        first: IpAddr,
        second: IpAddr,
        family: Family,
    },
    #[error(
        "annotation {ADDRESSES} of the pod names {address}, but pods get no {family} address here; name one that they get"
    )]
    Family { address: IpAddr, family: Family },
    #[error(
        "annotation {annotation} of the {of} names pool {pool:?}, which is none of {pools}; name one of these, or create it"
    )]
    NoSuchPool {
        annotation: &'static str,
        of: &'static str,
        pool: String,
        pools: String,
    },
}

/// The name of the annotation with the pools of a family.
fn pools_annotation(family: Family) -> &'static str {
    match family {
        Family::V4 => "cni.projectcalico.org/ipv4pools",
        Family::V6 => "cni.projectcalico.org/ipv6pools",
    }
}

fn example(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.65.0.0/16",
        Family::V6 => "fd65::/48",
    }
}

/// Whether pools are named, so that it must be known which there are.
pub(super) fn name_pools(pod: &Annotations, namespace: &Annotations, families: &[Family]) -> bool {
    let named = |&family: &Family| {
        let annotation = pools_annotation(family);
        text(pod, annotation)
            .or_else(|| text(namespace, annotation))
            .is_some()
    };
    families.iter().any(named)
}

/// What to ask for: an address of each of these families, as the annotations say. `pools` are all that there are, by name.
///
/// # Errors
/// When an annotation does not say what it should, or names what there is not.
pub(super) fn wanted(
    pod: &Annotations,
    namespace: &Annotations,
    pools: &[(String, IpNet)],
    families: &[Family],
) -> Result<Vec<Wanted>, AnnotationError> {
    if text(pod, ADDRESSES_WITHOUT_IPAM).is_some() {
        return Err(AnnotationError::WithoutIpam);
    }
    let addresses = addresses(pod, families)?;
    if !addresses.is_empty() {
        // As in Calico: a pod that names an address gets what it names, and nothing else.
        return Ok(addresses.into_values().map(Wanted::Address).collect());
    }
    let any = families.iter().map(|&family| {
        let pools = pools_of(pod, namespace, pools, family)?;
        Ok(Wanted::Any {
            family,
            count: 1,
            pools,
        })
    });
    any.collect()
}

/// The addresses that a pod names, by family.
fn addresses(pod: &Annotations, families: &[Family]) -> Result<BTreeMap<Family, IpAddr>, AnnotationError> {
    let mut named = BTreeMap::new();
    let Some(value) = text(pod, ADDRESSES) else {
        return Ok(named);
    };
    for value in list(value, ADDRESSES, "pod", "10.65.0.7")? {
        let Ok(address) = value.parse::<IpAddr>() else {
            return Err(AnnotationError::NoAddress { value });
        };
        let family = Family::of_address(address);
        if !families.contains(&family) {
            return Err(AnnotationError::Family { address, family });
        }
        if let Some(first) = named.insert(family, address)
            && first != address
        {
            let second = address;
            return Err(AnnotationError::TwoAddresses {
                first,
                second,
                family,
            });
        }
    }
    Ok(named)
}

/// The pools of a family that are named, in their order; none for all.
fn pools_of(
    pod: &Annotations,
    namespace: &Annotations,
    pools: &[(String, IpNet)],
    family: Family,
) -> Result<Vec<IpNet>, AnnotationError> {
    let annotation = pools_annotation(family);
    let of_pod = text(pod, annotation).map(|value| (value, "pod"));
    let named = of_pod.or_else(|| text(namespace, annotation).map(|value| (value, "namespace")));
    let Some((value, of)) = named else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for pool in list(value, annotation, of, example(family))? {
        // A pool is named by its range or by its name.
        let by_range = pool.parse::<IpNet>().ok().map(|range| range.trunc());
        let is_it = |(name, range): &&(String, IpNet)| *name == pool || Some(range.trunc()) == by_range;
        let of_family = |(_, range): &&(String, IpNet)| Family::of(*range) == family;
        match pools.iter().filter(of_family).find(is_it) {
            Some((_, range)) => found.push(range.trunc()),
            None => {
                let there = pools.iter().filter(of_family);
                let there: BTreeSet<String> =
                    there.map(|(name, range)| format!("{name} ({range})")).collect();
                let pools = match there.is_empty() {
                    true => format!("the {family} pools, of which there is none"),
                    false => there.into_iter().collect::<Vec<_>>().join(", "),
                };
                return Err(AnnotationError::NoSuchPool {
                    annotation,
                    of,
                    pool,
                    pools,
                });
            }
        }
    }
    Ok(found)
}

fn list(
    value: &str,
    annotation: &'static str,
    of: &'static str,
    example: &'static str,
) -> Result<Vec<String>, AnnotationError> {
    let list: Vec<String> = serde_json::from_str(value).map_err(|_| AnnotationError::Syntax {
        annotation,
        of,
        value: value.to_owned(),
        example,
    })?;
    if list.is_empty() {
        return Err(AnnotationError::Empty { annotation, of });
    }
    Ok(list)
}

/// The value of an annotation; an empty one is as good as none.
fn text<'a>(annotations: &'a Annotations, name: &str) -> Option<&'a str> {
    annotations
        .get(name)
        .map(|value| value.trim())
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOLS: [(&str, &str); 3] = [
        ("default", "10.65.0.0/16"),
        ("tenant", "10.66.0.0/16"),
        ("six", "fd65::/48"),
    ];
    const V4_POOLS: &str = "cni.projectcalico.org/ipv4pools";
    const V6_POOLS: &str = "cni.projectcalico.org/ipv6pools";

    fn asked(pod: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<Vec<Wanted>, String> {
        of_families(pod, namespace, families(false))
    }

    fn of_families(
        pod: &[(&str, &str)],
        namespace: &[(&str, &str)],
        families: &[Family],
    ) -> Result<Vec<Wanted>, String> {
        let annotations = |pairs: &[(&str, &str)]| -> Annotations {
            let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            pairs.collect()
        };
        let pools = POOLS.map(|(name, range)| (name.to_owned(), range.parse().unwrap()));
        let wanted = wanted(&annotations(pod), &annotations(namespace), &pools, families);
        wanted.map_err(|error| error.to_string())
    }

    fn from(family: Family, pools: &[&str]) -> Wanted {
        Wanted::Any {
            family,
            count: 1,
            pools: pools.iter().map(|pool| pool.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn without_annotations_any_address_will_do() {
        assert_eq!(asked(&[], &[]), Ok(vec![Wanted::one(Family::V4)]));
        assert_eq!(
            asked(&[(ADDRESSES, ""), (V4_POOLS, " ")], &[]),
            Ok(vec![Wanted::one(Family::V4)])
        );
    }

    #[test]
    fn pools_are_named_by_range_or_name_and_the_pod_counts_before_its_namespace() {
        let tenant = [(V4_POOLS, r#"["tenant"]"#)];
        assert_eq!(asked(&[], &tenant), Ok(vec![from(Family::V4, &["10.66.0.0/16"])]));
        let both = [(V4_POOLS, r#"["10.65.0.0/16", "tenant"]"#)];
        let expected = Ok(vec![from(Family::V4, &["10.65.0.0/16", "10.66.0.0/16"])]);
        assert_eq!(asked(&both, &tenant), expected);
        let six = [(V6_POOLS, r#"["six"]"#)];
        let expected = vec![from(Family::V4, &[]), from(Family::V6, &["fd65::/48"])];
        assert_eq!(of_families(&six, &[], &[Family::V4, Family::V6]), Ok(expected));
        // Pods get no IPv6 address: which pool it would be from is nobody's concern.
        assert_eq!(asked(&six, &[]), Ok(vec![Wanted::one(Family::V4)]));
    }

    #[test]
    fn an_address_counts_before_pools() {
        let named = [(ADDRESSES, r#"["10.65.0.7"]"#), (V4_POOLS, r#"["tenant"]"#)];
        let address = Wanted::Address("10.65.0.7".parse().unwrap());
        assert_eq!(asked(&named, &[]), Ok(vec![address.clone()]));
        // Of a namespace they would be all its pods'.
        assert_eq!(asked(&[], &named[..1]), Ok(vec![Wanted::one(Family::V4)]));
        let two = [(ADDRESSES, r#"["fd65::7", "10.65.0.7"]"#)];
        let six = Wanted::Address("fd65::7".parse().unwrap());
        assert_eq!(
            of_families(&two, &[], &[Family::V4, Family::V6]),
            Ok(vec![address, six])
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_the_values_and_the_way_out() {
        let no_ipam = "cni.projectcalico.org/ipAddrsNoIpam";
        #[rustfmt::skip]
        let cases: [(&str, &str, &[&str]); 9] = [
            (no_ipam, r#"["192.0.2.1"]"#, &["ipAddrsNoIpam is not supported", "cni.projectcalico.org/ipAddrs instead"]),
            (ADDRESSES, "10.65.0.7", &["ipAddrs of the pod", "10.65.0.7", "no JSON list"]),
            (ADDRESSES, "[]", &["ipAddrs of the pod is an empty list"]),
            (ADDRESSES, r#"["10.65.0.300"]"#, &["10.65.0.300", "no IP address"]),
            (ADDRESSES, r#"["10.65.0.7", "10.65.0.8"]"#, &["10.65.0.7 and 10.65.0.8", "one IPv4 address"]),
            (ADDRESSES, r#"["fd65::7"]"#, &["fd65::7", "no IPv6 address here"]),
            (V4_POOLS, r#"["none"]"#, &["ipv4pools of the pod", "none", "default (10.65.0.0/16), tenant (10.66.0.0/16)"]),
            (V4_POOLS, r#"["six"]"#, &["six", "default (10.65.0.0/16)"]),
            (V4_POOLS, r#"{"a": 1}"#, &["ipv4pools of the pod", "no JSON list", "10.65.0.0/16"]),
        ];
        for (annotation, value, words) in cases {
            let error = asked(&[(annotation, value)], &[]).unwrap_err();
            for word in words {
                assert!(
                    error.contains(word),
                    "{annotation}={value}: {error:?} does not say {word:?}"
                );
            }
        }
        let error = asked(&[], &[(V4_POOLS, "tenant")]).unwrap_err();
        assert!(error.contains("ipv4pools of the namespace"), "{error}");
    }
}
