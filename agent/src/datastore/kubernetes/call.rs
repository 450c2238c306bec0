//! One request to the API server: its verb, its path, and what it is called in an error.

use std::fmt;
use std::fmt::Write as _;

use hyper::Method;

use crate::api::{Key, Kind};

/// What is done with a resource, as RBAC calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }

    pub(super) fn method(self) -> Method {
        match self {
            Self::Get | Self::List | Self::Watch => Method::GET,
            Self::Create => Method::POST,
            Self::Update => Method::PUT,
            Self::Patch => Method::PATCH,
            Self::Delete => Method::DELETE,
        }
    }
}

/// How a body is to be read. A patch names its kind so (RFC 7386 for the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Json,
    MergePatch,
    StrategicMergePatch,
}

impl Content {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MergePatch => "application/merge-patch+json",
            Self::StrategicMergePatch => "application/strategic-merge-patch+json",
        }
    }
}

/// What of an object a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Its status alone.
    Status,
    /// An Event about it, of this name.
    Event(String),
}

/// The namespace of events about objects that live in none.
const EVENT_NAMESPACE: &str = "default";

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) verb: Verb,
    pub(super) kind: Kind,
    /// Group and version of the API.
    pub(super) version: &'static str,
    /// The object's name; none for all objects.
    pub(super) name: Option<String>,
    /// Its namespace, where the kind has one.
    pub(super) namespace: Option<String>,
    /// What of the object it is about.
    pub(super) part: Part,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<(Content, Vec<u8>)>,
}

impl Call {
    /// A request for one object.
    pub(super) fn one(verb: Verb, key: &Key) -> Self {
        Self {
            name: Some(key.name.clone()),
            namespace: key.namespace.clone(),
            ..Self::all(verb, key.kind)
        }
    }

    /// A request for all objects of a kind.
    pub(super) fn all(verb: Verb, kind: Kind) -> Self {
        Self {
            verb,
            kind,
            version: kind.api_version(),
            name: None,
            namespace: None,
            part: Part::Whole,
            query: Vec::new(),
            body: None,
        }
    }

    /// Of one namespace only.
    pub(super) fn of(mut self, namespace: Option<String>) -> Self {
        self.namespace = namespace;
        self
    }

    /// By another version of the API.
    pub(super) fn by(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    pub(super) fn about(mut self, part: Part) -> Self {
        self.part = part;
        self
    }

    pub(super) fn with_body(mut self, content: Content, body: Vec<u8>) -> Self {
        self.body = Some((content, body));
        self
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// The object that it is about.
    pub(super) fn key(&self) -> Key {
        let name = self.name.clone().unwrap_or_default();
        Key::namespaced(self.kind, self.namespace.as_deref(), name)
    }

    /// Path and query.
    pub(super) fn target(&self) -> String {
        let mut target = match &self.part {
            Part::Whole | Part::Status => self.path(),
            Part::Event(_) => format!("/api/v1/namespaces/{EVENT_NAMESPACE}/events"),
        };
        let name = match &self.part {
            Part::Whole | Part::Status => self.name.as_ref(),
            Part::Event(name) => Some(name),
        };
        // What is created is named by its body.
        if let Some(name) = name.filter(|_| self.verb != Verb::Create) {
            let _ = write!(target, "/{}", Encoded(name));
        }
        if self.part == Part::Status {
            target.push_str("/status");
        }
        for (n, (name, value)) in self.query.iter().enumerate() {
            let mark = if n == 0 { '?' } else { '&' };
            let _ = write!(target, "{mark}{name}={}", Encoded(value));
        }
        target
    }

    /// The path of all objects of the kind, in the namespace if there is one.
    fn path(&self) -> String {
        let version = self.version;
        let prefix = if version.contains('/') { "apis" } else { "api" };
        let mut path = format!("/{prefix}/{version}");
        if let Some(namespace) = &self.namespace {
            let _ = write!(path, "/namespaces/{}", Encoded(namespace));
        }
        let _ = write!(path, "/{}", self.kind.plural());
        path
    }

    /// The resource as a rule of a ClusterRole names it: group and plural, with the part.
    pub(super) fn resource(&self) -> (&'static str, String) {
        let group = self
            .kind
            .api_version()
            .split_once('/')
            .map_or("", |(group, _)| group);
        match &self.part {
            Part::Whole => (group, self.kind.plural().to_owned()),
            Part::Status => (group, format!("{}/status", self.kind.plural())),
            Part::Event(_) => ("", "events".to_owned()),
        }
    }
}

/// `get Node worker-1`, `list nodes`.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = self.verb.as_str();
        match &self.name {
            Some(_) => write!(f, "{verb} {}", self.key())?,
            None => write!(f, "{verb} {}", self.kind.plural())?,
        }
        match self.part {
            Part::Whole => Ok(()),
            Part::Status => f.write_str(" (its status)"),
            Part::Event(_) => f.write_str(" (an event about it)"),
        }
    }
}

/// A part of a URL: all but the unreserved characters of RFC 3986 §2.3 as `%XX`.
pub(super) struct Encoded<'a>(pub(super) &'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_that_of_the_api() {
        let pool = Key::new(Kind::IpPool, "default-ipv4-ippool");
        let get = Call::one(Verb::Get, &pool);
        assert_eq!(
            get.target(),
            "/apis/crd.projectcalico.org/v1/ippools/default-ipv4-ippool"
        );
        let node = Key::new(Kind::Node, "n1");
        let patch = Call::one(Verb::Patch, &node).about(Part::Status);
        let patch = patch.with("fieldManager", "culvert");
        assert_eq!(patch.target(), "/api/v1/nodes/n1/status?fieldManager=culvert");
        assert_eq!(patch.resource(), ("", "nodes/status".to_owned()));
        let event = Call::one(Verb::Patch, &node).about(Part::Event("n1.0a".to_owned()));
        assert_eq!(event.target(), "/api/v1/namespaces/default/events/n1.0a");
        let create = Call::one(Verb::Create, &pool);
        assert_eq!(create.target(), "/apis/crd.projectcalico.org/v1/ippools");
        let lease = Key::namespaced(Kind::Lease, Some("kube-system"), "gc");
        assert_eq!(
            Call::one(Verb::Get, &lease).target(),
            "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/gc"
        );
        assert_eq!(
            Call::one(Verb::Create, &lease).target(),
            "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        );
    }

    #[test]
    fn what_has_a_meaning_in_a_url_is_encoded() {
        let list = Call::all(Verb::List, Kind::Node).with("continue", "a=b&c/%\u{e4}");
        assert_eq!(list.target(), "/api/v1/nodes?continue=a%3Db%26c%2F%25%C3%A4");
        let odd = Call::one(Verb::Get, &Key::new(Kind::Node, "../x?y"));
        assert!(!odd.target().contains('?') && !odd.target().contains("nodes/../"));
    }
}
