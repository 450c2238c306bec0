//! Passwords of sessions, from Secrets.

use culvert_bgp::config::Password;

use super::{Fault, Local};
use crate::api::BgpPassword;
use crate::cluster::Cluster;
use crate::uapi::MD5_KEY_MAX;

/// The password that a resource asks for; none where it asks for none, or says that it is optional and it is not there.
///
/// # Errors
/// When it is asked for and not there, or cannot be one.
pub(super) fn password(
    local: Local<'_>,
    cluster: &Cluster,
    wanted: Option<&BgpPassword>,
) -> Result<Option<Password>, Fault> {
    let Some(reference) = wanted.and_then(|wanted| wanted.secret_key_ref.as_ref()) else {
        return Ok(None);
    };
    let (namespace, name, key) = (&local.speaking.secret_namespace, &reference.name, &reference.key);
    let optional = reference.optional.unwrap_or(false);
    let Some(secret) = cluster.bgp().secret(namespace, name) else {
        let fault = Fault::NoSecret {
            namespace: namespace.clone(),
            name: name.clone(),
        };
        return if optional { Ok(None) } else { Err(fault) };
    };
    let Some(value) = secret.value(key) else {
        let keys: Vec<&str> = secret.keys().collect();
        let fault = Fault::NoKey {
            namespace: namespace.clone(),
            name: name.clone(),
            key: key.clone(),
            keys: if keys.is_empty() {
                "none".to_owned()
            } else {
                keys.join(", ")
            },
        };
        return if optional { Ok(None) } else { Err(fault) };
    };
    // Whoever makes a Secret from a file has the end of its line in it, which no router's configuration has.
    let text = std::str::from_utf8(&value)
        .map(|text| text.trim_end_matches(['\r', '\n']))
        .ok();
    // RFC 2385 §4.5: 80 octets of text, as all routers take them.
    match text.filter(|text| (1..=MD5_KEY_MAX).contains(&text.len())) {
        Some(text) => Ok(Some(Password::new(text))),
        None => Err(Fault::Password {
            namespace: namespace.clone(),
            name: name.clone(),
            key: key.clone(),
            length: text.map_or(value.len(), str::len),
        }),
    }
}
