//! Which way things point: who may depend on whom, who may import whom, and what lies at the top of the tree.

#![allow(clippy::unwrap_used, reason = "what a test cannot read fails it")]

mod paths;
mod rules;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .current_dir(root())
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .unwrap()
}

/// The names of a package's dependencies, without those of its tests.
fn dependencies(metadata: &Metadata, package: &str) -> BTreeSet<String> {
    let package = metadata.packages.iter().find(|p| p.name == package).unwrap();
    let needed = package
        .dependencies
        .iter()
        .filter(|d| d.kind != DependencyKind::Development);
    needed.map(|dependency| dependency.name.clone()).collect()
}

/// Those of `found` that are not allowed.
fn beyond<'a>(found: &'a BTreeSet<String>, allowed: &[&str]) -> Vec<&'a str> {
    found
        .iter()
        .map(String::as_str)
        .filter(|name| !allowed.contains(name))
        .collect()
}

#[test]
fn the_pure_crates_depend_on_values_alone() {
    let metadata = metadata();
    let bgp = dependencies(&metadata, "culvert-bgp");
    assert_eq!(
        beyond(&bgp, &["ipnet", "thiserror", "tracing", "zettabgp"]),
        Vec::<&str>::new(),
        "culvert-bgp"
    );
    // Unknown fields are kept as JSON values; Calico shortens long names by SHA-256 and labels by SHA3-256.
    let ipam = dependencies(&metadata, "culvert-ipam");
    assert_eq!(
        beyond(
            &ipam,
            &["ipnet", "serde", "serde_json", "sha2", "sha3", "thiserror"]
        ),
        Vec::<&str>::new(),
        "culvert-ipam"
    );
}

#[test]
fn the_agent_joins_the_two_and_nobody_joins_the_agent_but_tests() {
    let metadata = metadata();
    let agent = dependencies(&metadata, "culvert-agent");
    assert!(agent.contains("culvert-bgp") && agent.contains("culvert-ipam"));
    for package in &metadata.packages {
        let ours: Vec<_> = dependencies(&metadata, &package.name)
            .into_iter()
            .filter(|d| d.starts_with("culvert-"))
            .collect();
        let allowed: &[&str] = match package.name.as_str() {
            "culvert-agent" => &["culvert-bgp", "culvert-ipam"],
            "culvert-examples" => &["culvert-agent", "culvert-bgp", "culvert-ipam", "culvert-tests"],
            "culvert-tests" => &["culvert-agent", "culvert-bgp", "culvert-ipam"],
            _ => &[],
        };
        assert!(
            ours.iter().all(|name| allowed.contains(&name.as_str())),
            "{} depends on {ours:?}",
            package.name
        );
    }
}

#[test]
fn a_dependency_too_much_is_noticed() {
    let found = BTreeSet::from(["ipnet".to_owned(), "tokio".to_owned()]);
    assert_eq!(beyond(&found, &["ipnet"]), ["tokio"]);
}

#[test]
fn every_source_imports_only_what_it_may() {
    let mut sources = Vec::new();
    for folder in ["agent", "bgp", "ipam", "tests", "examples"] {
        collect(&root().join(folder), &mut sources);
    }
    assert!(
        sources.len() > 30,
        "only {} sources found: the search is broken",
        sources.len()
    );
    let mut broken = Vec::new();
    for path in sources {
        let file = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        broken.extend(rules::broken(&file, &std::fs::read_to_string(&path).unwrap()));
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn what_the_compiler_cannot_check_is_in_one_file() {
    const ALLOWED_IN: &str = "agent/src/uapi.rs";
    // The compiler denies it wherever nobody names the lint.
    let lint = ["unsafe", "code"].join("_");
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(workspace.contains(&format!("\n{lint} = \"deny\"\n")));
    for package in &metadata().packages {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} does not take the lints of the workspace",
            package.name
        );
    }
    let mut sources = Vec::new();
    collect(&root(), &mut sources);
    let naming = sources
        .iter()
        .filter(|path| std::fs::read_to_string(path).unwrap().contains(&lint));
    let naming: Vec<_> = naming.map(|path| path.strip_prefix(root()).unwrap()).collect();
    assert_eq!(naming, [Path::new(ALLOWED_IN)]);
}

/// All Rust sources below a folder.
fn collect(folder: &Path, sources: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name() != "target" {
                collect(&path, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
}

#[test]
fn the_top_of_the_tree_holds_what_the_design_says() {
    let allowed = [
        "agent",
        "bgp",
        "charts",
        "examples",
        "ipam",
        "target",
        "tests", // folders
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md", // for people
        "Cargo.lock",
        "Cargo.toml",
        "clippy.toml",
        "rustfmt.toml", // for cargo
    ];
    let entries = std::fs::read_dir(root()).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let stray: Vec<_> = names
        .filter(|n| !n.starts_with('.') && !allowed.contains(&n.as_str()))
        .collect();
    assert_eq!(stray, Vec::<String>::new(), "these belong elsewhere");
}
