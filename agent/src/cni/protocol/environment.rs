//! The environment of a call.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{CniError, Name};

/// A pod of Kubernetes, from `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
}

/// What the runtime wants (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Tell whether it is still attached as it was.
    Check,
    /// Tell whether the plugin can attach containers now.
    Status,
    /// Forget the containers that are not named.
    Gc,
    /// Tell the versions that are spoken.
    Version,
}

/// The environment of a call. Each part is checked when a command asks for it.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok().filter(|name| name.starts_with("CNI_"))?;
                Some((name, value.to_string_lossy().into_owned()))
            })
            .collect()
    }

    /// `CNI_COMMAND`.
    ///
    /// # Errors
    /// When it is absent or unknown.
    pub fn command(&self) -> Result<Command, CniError> {
        match self.required("CNI_COMMAND")? {
            "ADD" => Ok(Command::Add),
            "DEL" => Ok(Command::Del),
            "CHECK" => Ok(Command::Check),
            "STATUS" => Ok(Command::Status),
            "GC" => Ok(Command::Gc),
            "VERSION" => Ok(Command::Version),
            other => Err(CniError::environment(format!(
                "CNI_COMMAND is {other:?}: it must be ADD, DEL, CHECK, STATUS, GC or VERSION"
            ))),
        }
    }

    /// `CNI_CONTAINERID`.
    ///
    /// # Errors
    /// When it is absent or no [`Name`].
    pub fn container_id(&self) -> Result<Name, CniError> {
        self.required("CNI_CONTAINERID")?
            .parse()
            .map_err(|error| CniError::environment(format!("CNI_CONTAINERID: {error}")))
    }

    /// `CNI_IFNAME`: what the kernel allows as a name of an interface (net/core/dev.c `dev_valid_name`).
    ///
    /// # Errors
    /// When it is absent or not allowed.
    pub fn interface(&self) -> Result<String, CniError> {
        let name = self.required("CNI_IFNAME")?;
        let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name.len() > 15 || name == "." || name == ".." || name.contains(forbidden) {
            return Err(CniError::environment(format!(
                "CNI_IFNAME is {name:?}: a name of an interface has at most 15 bytes, no '/', ':' or white space, \
                 and is not '.' or '..'"
            )));
        }
        Ok(name.to_owned())
    }

    /// `CNI_NETNS`, if there is one.
    #[must_use]
    pub fn netns(&self) -> Option<PathBuf> {
        self.0
            .get("CNI_NETNS")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    }

    /// `CNI_NETNS`, for the commands that cannot do without.
    ///
    /// # Errors
    /// When it is absent.
    pub fn required_netns(&self) -> Result<PathBuf, CniError> {
        self.required("CNI_NETNS").map(PathBuf::from)
    }

    /// The pod that `CNI_ARGS` names, if it names one.
    ///
    /// # Errors
    /// When an argument is no `KEY=VALUE`, or only half of the pod is named, or its name is none of Kubernetes.
    pub fn pod(&self) -> Result<Option<Pod>, CniError> {
        let mut arguments = BTreeMap::new();
        let text = self.0.get("CNI_ARGS").map_or("", String::as_str);
        for argument in text.split(';').filter(|argument| !argument.is_empty()) {
            let (key, value) = argument.split_once('=').ok_or_else(|| {
                CniError::environment(format!(
                    "CNI_ARGS has {argument:?}: it must be KEY=VALUE;KEY=VALUE"
                ))
            })?;
            arguments.insert(key, value);
        }
        match (arguments.get("K8S_POD_NAMESPACE"), arguments.get("K8S_POD_NAME")) {
            (None, None) => Ok(None),
            (Some(namespace), Some(name)) => Ok(Some(Pod {
                namespace: pod_name("K8S_POD_NAMESPACE", namespace)?,
                name: pod_name("K8S_POD_NAME", name)?,
            })),
            (Some(_), None) => Err(CniError::environment(
                "CNI_ARGS has K8S_POD_NAMESPACE but no K8S_POD_NAME".to_owned(),
            )),
            (None, Some(_)) => Err(CniError::environment(
                "CNI_ARGS has K8S_POD_NAME but no K8S_POD_NAMESPACE".to_owned(),
            )),
        }
    }

    fn required(&self, name: &str) -> Result<&str, CniError> {
        match self.0.get(name).map(String::as_str) {
            None | Some("") => Err(CniError::environment(format!("{name} is not set"))),
            Some(value) => Ok(value),
        }
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// A DNS subdomain of RFC 1123, as Kubernetes wants its names.
fn pod_name(key: &str, value: &str) -> Result<String, CniError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    if value.is_empty() || value.len() > 253 || !value.chars().all(allowed) {
        return Err(CniError::environment(format!(
            "CNI_ARGS has {key}={value:?}: a name has 1 to 253 lower case letters, digits, '.' and '-'"
        )));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Code;
    use super::*;

    fn with(name: &str, value: &str) -> Environment {
        [(name.to_owned(), value.to_owned())].into_iter().collect()
    }

    #[track_caller]
    fn refuses<T: std::fmt::Debug>(result: Result<T, CniError>, words: &str) {
        let error = result.unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.message.contains(words), "{error}");
    }

    #[test]
    fn a_command_is_one_of_the_six() {
        assert_eq!(with("CNI_COMMAND", "ADD").command(), Ok(Command::Add));
        assert_eq!(with("CNI_COMMAND", "VERSION").command(), Ok(Command::Version));
        refuses(with("CNI_COMMAND", "add").command(), "\"add\"");
        refuses(Environment::default().command(), "CNI_COMMAND is not set");
        refuses(with("CNI_COMMAND", "").command(), "CNI_COMMAND is not set");
    }

    #[test]
    fn an_interface_has_a_name_that_the_kernel_takes() {
        assert_eq!(with("CNI_IFNAME", "eth0").interface().unwrap(), "eth0");
        assert_eq!(
            with("CNI_IFNAME", "fifteen-letters").interface().unwrap(),
            "fifteen-letters"
        );
        for name in [
            "sixteen-letters!",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "a\u{7f}",
        ] {
            refuses(with("CNI_IFNAME", name).interface(), "CNI_IFNAME");
        }
        refuses(Environment::default().interface(), "CNI_IFNAME is not set");
    }

    #[test]
    fn a_container_has_a_name_that_is_safe_in_a_path() {
        assert_eq!(
            with("CNI_CONTAINERID", "abc").container_id().unwrap().as_str(),
            "abc"
        );
        refuses(
            with("CNI_CONTAINERID", "../abc").container_id(),
            "CNI_CONTAINERID: \"../abc\"",
        );
    }

    #[test]
    fn a_namespace_is_there_or_not() {
        assert_eq!(
            with("CNI_NETNS", "/run/netns/a").netns(),
            Some("/run/netns/a".into())
        );
        assert_eq!(with("CNI_NETNS", "").netns(), None);
        refuses(with("CNI_NETNS", "").required_netns(), "CNI_NETNS is not set");
    }

    #[test]
    fn the_pod_is_found_among_the_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=a=b;";
        let pod = Pod {
            namespace: "default".into(),
            name: "web-0".into(),
        };
        assert_eq!(with("CNI_ARGS", args).pod(), Ok(Some(pod)));
        assert_eq!(with("CNI_ARGS", "IgnoreUnknown=1").pod(), Ok(None));
        assert_eq!(Environment::default().pod(), Ok(None));
    }

    #[test]
    fn half_a_pod_or_a_wrong_name_of_one_is_refused() {
        refuses(with("CNI_ARGS", "K8S_POD_NAME=a").pod(), "no K8S_POD_NAMESPACE");
        refuses(with("CNI_ARGS", "K8S_POD_NAMESPACE=a").pod(), "no K8S_POD_NAME");
        refuses(with("CNI_ARGS", "K8S_POD_NAME").pod(), "KEY=VALUE");
        for name in ["", "A", "a/b", "a b"] {
            let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}");
            refuses(with("CNI_ARGS", &args).pod(), &format!("K8S_POD_NAME={name:?}"));
        }
    }
}
