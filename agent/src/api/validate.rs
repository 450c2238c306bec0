//! What the types of the fields cannot say: checked wherever an object enters, from a file or from the agent itself.

mod bgp;

use std::borrow::Cow;
use std::fmt;

use ipnet::IpNet;

use super::ip_reservation::range;
use super::{EncapsulationMode, IpPoolSpec, Object};

/// Longest name of an object (Kubernetes' limit for a DNS subdomain).
pub const NAME_MAX: usize = 253;

/// A field whose value is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: {allowed}")]
pub struct FieldError {
    /// The field's path in the manifest, as in `spec.blockSize` or `spec.importV4[0].cidr`.
    pub field: Cow<'static, str>,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub allowed: String,
}

impl FieldError {
    fn new(
        field: impl Into<Cow<'static, str>>,
        value: impl fmt::Display,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }
}

impl Object {
    /// Checks what the types of the fields leave open: the name, and ranges of values.
    ///
    /// # Errors
    /// The first field whose value is not allowed.
    pub fn validate(&self) -> Result<(), FieldError> {
        check_name(&self.metadata().name)?;
        match self {
            Object::IpPool(pool) => check_pool(&pool.spec),
            Object::BgpConfiguration(bgp) => bgp::configuration(&bgp.spec),
            Object::BgpPeer(peer) => bgp::peer(&peer.spec),
            Object::BgpFilter(filter) => bgp::filter(&filter.spec),
            Object::IpReservation(reservation) => check_reserved(&reservation.spec.reserved_cidrs),
            Object::IpamBlock(block) => check_range("spec.cidr", block.spec.cidr),
            Object::BlockAffinity(affinity) => check_range("spec.cidr", affinity.spec.cidr),
            Object::Secret(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::Pod(_)
            | Object::Lease(_) => check_namespace(self.metadata().namespace.as_deref()),
            Object::Node(_) | Object::Namespace(_) | Object::IpamHandle(_) | Object::IpamConfig(_) => Ok(()),
        }
    }
}

/// Checks a `metadata.name`. Names become file names and parts of URLs, so that their characters are few.
///
/// # Errors
/// When it is empty, longer than [`NAME_MAX`] bytes, or has a character that is not allowed.
pub fn check_name(name: &str) -> Result<(), FieldError> {
    check_label("metadata.name", name)
}

fn check_namespace(namespace: Option<&str>) -> Result<(), FieldError> {
    match namespace {
        None | Some("") => Ok(()),
        Some(namespace) => check_label("metadata.namespace", namespace),
    }
}

fn check_label(field: &'static str, name: &str) -> Result<(), FieldError> {
    let ends = |c: char| c.is_ascii_alphanumeric();
    let within = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() {
        return Err(FieldError::new(field, "empty", "every object needs a name"));
    }
    if name.len() > NAME_MAX {
        let value = format!("{} bytes long", name.len());
        return Err(FieldError::new(
            field,
            value,
            format!("at most {NAME_MAX} are allowed"),
        ));
    }
    if !(name.starts_with(ends) && name.ends_with(ends) && name.chars().all(within)) {
        let allowed =
            "letters, digits, '-', '_' and '.' are allowed, the first and the last a letter or digit";
        return Err(FieldError::new(field, format!("{name:?}"), allowed));
    }
    Ok(())
}

fn check_pool(pool: &IpPoolSpec) -> Result<(), FieldError> {
    const BLOCK_SIZE: &str = "spec.blockSize";
    check_range("spec.cidr", pool.cidr)?;
    let longest = pool.cidr.max_prefix_len();
    if let Some(size) = pool.block_size {
        if !(longest - 12..=longest).contains(&size) {
            let allowed = format!("{} to {longest} is allowed in {}", longest - 12, pool.cidr);
            return Err(FieldError::new(BLOCK_SIZE, size, allowed));
        }
        if size < pool.cidr.prefix_len() {
            let allowed = format!("a block cannot be larger than its pool {}", pool.cidr);
            return Err(FieldError::new(BLOCK_SIZE, size, allowed));
        }
    }
    if matches!(pool.cidr, IpNet::V6(_)) && pool.ipip_mode != EncapsulationMode::Never {
        let value = format!("{:?}", pool.ipip_mode);
        return Err(FieldError::new(
            "spec.ipipMode",
            value,
            "an IPv6 pool allows only Never",
        ));
    }
    Ok(())
}

fn check_reserved(entries: &[String]) -> Result<(), FieldError> {
    match entries.iter().find(|entry| range(entry).is_none()) {
        Some(entry) => {
            let allowed = "ranges such as 10.0.0.0/28 and addresses are allowed";
            Err(FieldError::new("spec.reservedCIDRs", entry, allowed))
        }
        None => Ok(()),
    }
}

fn check_range(field: impl Into<Cow<'static, str>>, range: IpNet) -> Result<(), FieldError> {
    if range != range.trunc() {
        let allowed = format!("bits beyond the prefix are set, write {}", range.trunc());
        return Err(FieldError::new(field, range, allowed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_folder_or_hide_in_it_are_refused() {
        let long = "a".repeat(NAME_MAX + 1);
        for name in [
            "", ".", "..", "a/b", "../a", "/etc", ".a", "a.", "-a", "a b", "a\0b", "ä", "a\n", &long,
        ] {
            let error = check_name(name).unwrap_err();
            assert_eq!(error.field, "metadata.name", "{name:?}");
        }
    }

    #[test]
    fn names_as_kubernetes_and_calico_make_them_are_allowed() {
        let longest = "a".repeat(NAME_MAX);
        for name in [
            "a",
            "node-1.example.org",
            "10-65-17-64-26",
            "ipip-tunnel-addr-n1",
            "k8s-pod-network.0f3a",
            &longest,
        ] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_named_with_what_is_allowed() {
        for (kind, spec, said) in [
            (
                "IPPool",
                r#"{"cidr":"10.65.0.1/16"}"#,
                "spec.cidr is 10.65.0.1/16: bits beyond the prefix are set, write 10.65.0.0/16",
            ),
            (
                "IPPool",
                r#"{"cidr":"10.65.0.0/16","blockSize":19}"#,
                "spec.blockSize is 19: 20 to 32 is allowed in 10.65.0.0/16",
            ),
            (
                "IPPool",
                r#"{"cidr":"10.65.0.0/28","blockSize":26}"#,
                "spec.blockSize is 26: a block cannot be larger than its pool 10.65.0.0/28",
            ),
            (
                "IPPool",
                r#"{"cidr":"fd00::/64","blockSize":115}"#,
                "spec.blockSize is 115: 116 to 128 is allowed in fd00::/64",
            ),
            (
                "IPPool",
                r#"{"cidr":"fd00::/64","ipipMode":"Always"}"#,
                "spec.ipipMode is Always: an IPv6 pool allows only Never",
            ),
            (
                "IPReservation",
                r#"{"reservedCIDRs":["10.0.0.0/28","10.0.0"]}"#,
                "spec.reservedCIDRs is 10.0.0: ranges such as 10.0.0.0/28 and addresses are allowed",
            ),
            (
                "BGPConfiguration",
                r#"{"asNumber":0}"#,
                "spec.asNumber is 0: 1 to 4294967295 is allowed",
            ),
            (
                "BGPConfiguration",
                r#"{"listenPort":0}"#,
                "spec.listenPort is 0: 1 to 65535 is allowed",
            ),
        ] {
            let kind = super::super::Kind::of_manifest(super::super::CALICO_API_VERSION, kind).unwrap();
            let body = format!(r#"{{"metadata":{{"name":"x"}},"spec":{spec}}}"#);
            let object = Object::deserialize(kind, &mut serde_json::Deserializer::from_str(&body)).unwrap();
            assert_eq!(object.validate().unwrap_err().to_string(), said);
        }
    }
}
