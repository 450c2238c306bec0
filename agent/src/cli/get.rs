//! `culvert get`: resources, printed as `calicoctl get` prints them.

mod columns;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::CliError;
use super::store::StoreArguments;
use crate::api::{Key, Kind, Object};
use crate::cluster::Cluster;
use crate::datastore::Datastore;
use crate::table;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The kind: ippool, node, block, affinity, handle, or any other, in singular or plural.
    #[arg(value_name = "KIND", value_parser = parse_kind)]
    kind: Kind,
    /// The names of the objects; none for all.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    store: StoreArguments,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people: what tells the objects apart.
    #[default]
    Table,
    /// For people: with further columns.
    Wide,
    /// Everything, as a manifest.
    Yaml,
    /// Everything, as JSON.
    Json,
}

/// The names that calicoctl uses, where they are not the kind's own.
const SHORT_NAMES: [(&str, Kind); 5] = [
    ("pool", Kind::IpPool),
    ("block", Kind::IpamBlock),
    ("affinity", Kind::BlockAffinity),
    ("handle", Kind::IpamHandle),
    ("bgpconfig", Kind::BgpConfiguration),
];

fn kind_named(name: &str) -> Option<Kind> {
    let name = name.to_ascii_lowercase();
    let singular = name.strip_suffix('s').unwrap_or(&name);
    let own = Kind::ALL
        .into_iter()
        .find(|kind| kind.plural() == name || kind.as_str().eq_ignore_ascii_case(singular));
    let short = SHORT_NAMES
        .into_iter()
        .find(|(short, _)| *short == singular || *short == name);
    own.or(short.map(|(_, kind)| kind))
}

/// No kind has this name.
#[derive(Debug, thiserror::Error)]
#[error("there is no kind {name:?}; there are {}", Kind::ALL.map(Kind::plural).join(", "))]
struct UnknownKind {
    name: String,
}

fn parse_kind(name: &str) -> Result<Kind, UnknownKind> {
    kind_named(name).ok_or_else(|| UnknownKind {
        name: name.to_owned(),
    })
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let text = arguments.store.run(async |store| {
        let objects = read(store.as_ref(), arguments).await?;
        let cluster = match arguments.output {
            // A node without an AS number of its own is shown with the cluster's.
            Output::Wide => cluster_of(&store.list(Kind::BgpConfiguration).await?),
            _ => Cluster::default(),
        };
        render(&objects, arguments, &cluster)
    })?;
    super::print(&text)
}

async fn read(store: &dyn Datastore, arguments: &Arguments) -> Result<Vec<Object>, CliError> {
    if arguments.names.is_empty() {
        return Ok(store.list(arguments.kind).await?);
    }
    let mut objects = Vec::new();
    for name in &arguments.names {
        // An object of a namespace is named as NAMESPACE/NAME, or by its name where that is the usual one.
        let (namespace, name) = match name.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, name.as_str()),
        };
        let key = Key::namespaced(arguments.kind, namespace, name);
        objects.push(store.get(&key).await?.ok_or(CliError::NoObject { key })?);
    }
    Ok(objects)
}

fn cluster_of(objects: &[Object]) -> Cluster {
    let mut cluster = Cluster::default();
    for object in objects {
        cluster.upsert(object);
    }
    cluster
}

/// Several objects in one document, as the Kubernetes API lists them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    api_version: &'static str,
    kind: &'static str,
    items: &'a [Object],
}

fn render(objects: &[Object], arguments: &Arguments, cluster: &Cluster) -> Result<String, CliError> {
    let list = List {
        api_version: "v1",
        kind: "List",
        items: objects,
    };
    // One object that was asked for by name stands alone.
    let alone = objects.first().filter(|_| arguments.names.len() == 1);
    Ok(match (arguments.output, alone) {
        (Output::Yaml, Some(object)) => serde_yaml::to_string(object)?,
        (Output::Yaml, None) => serde_yaml::to_string(&list)?,
        (Output::Json, Some(object)) => serde_json::to_string_pretty(object)? + "\n",
        (Output::Json, None) => serde_json::to_string_pretty(&list)? + "\n",
        (Output::Table | Output::Wide, _) => {
            let wide = arguments.output == Output::Wide;
            let rows: Vec<Vec<String>> = objects
                .iter()
                .map(|object| columns::row(object, wide, cluster))
                .map(|row| row.iter().map(|cell| table::printable(cell)).collect())
                .collect();
            table::plain(columns::header(arguments.kind, wide), &rows)
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::api::IpPool;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        let words = std::iter::once("get").chain(words.iter().copied());
        Command::try_parse_from(words).map(|command| command.arguments)
    }

    #[test]
    fn a_kind_is_known_by_every_name_it_has() {
        for (name, kind) in [
            ("ippool", Kind::IpPool),
            ("IPPools", Kind::IpPool),
            ("pool", Kind::IpPool),
            ("node", Kind::Node),
            ("nodes", Kind::Node),
            ("block", Kind::IpamBlock),
            ("blocks", Kind::IpamBlock),
            ("ipamblock", Kind::IpamBlock),
            ("affinity", Kind::BlockAffinity),
            ("blockaffinities", Kind::BlockAffinity),
            ("handles", Kind::IpamHandle),
            ("bgpconfig", Kind::BgpConfiguration),
            ("bgpconfigurations", Kind::BgpConfiguration),
        ] {
            assert_eq!(parse(&[name]).map(|a| a.kind).ok(), Some(kind), "{name}");
        }
        for kind in Kind::ALL {
            assert_eq!(kind_named(kind.as_str()), Some(kind));
            assert_eq!(kind_named(kind.plural()), Some(kind));
        }
    }

    #[test]
    fn an_unknown_kind_is_refused_with_the_known_ones() {
        let error = parse(&["pods-and-more"]).unwrap_err().to_string();
        assert!(
            error.contains("pods-and-more") && error.contains("ippool"),
            "{error}"
        );
    }

    #[test]
    fn what_is_printed_in_full_can_be_read_again() {
        let manifest = "{metadata: {name: p}, spec: {cidr: 10.65.0.0/16, ipipMode: Always, later: [1]}}";
        let pool: IpPool = serde_yaml::from_str(manifest).unwrap();
        let objects = [Object::IpPool(pool)];
        for (words, path) in [
            (vec!["ippool", "p", "-o", "yaml"], "/spec/later/0"),
            (vec!["ippool", "p", "-o", "json"], "/spec/later/0"),
            (vec!["ippool", "-o", "yaml"], "/items/0/spec/later/0"),
            (vec!["ippool", "-o", "json"], "/items/0/spec/later/0"),
        ] {
            let text = render(&objects, &parse(&words).unwrap(), &Cluster::default()).unwrap();
            let read: serde_json::Value = serde_yaml::from_str(&text).unwrap();
            assert_eq!(read.pointer(path), Some(&1.into()), "{words:?}: {text}");
        }
    }
}
