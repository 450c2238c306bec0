//! A shadow on a node that another daemon routes: it says what an agent would change, and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{Lab, Namespace, wait_for};
use libtest_mimic::Failed;

use crate::continuity::{arrived, train};
use crate::ensure;
use crate::migration::{hand_to_bird, of_bird};

const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of a namespace's kernel that an agent could change.
fn kernel(node: &Namespace) -> Result<String, Failed> {
    let mut all = String::new();
    for what in [
        "route show table all",
        "rule show",
        "-details link show",
        "addr show",
    ] {
        all += &node.ip(what)?;
    }
    Ok(all)
}

/// The files below a folder, with what is in them.
fn files(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, Failed> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // The agents of the other nodes renew a lease; that moves the counter of all writes on, which is a hidden file.
        let is_of_leases = path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.contains("lease") || name.starts_with('.')
        });
        if is_of_leases {
            continue;
        }
        if path.is_dir() {
            found.append(&mut files(&path)?);
        } else {
            found.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(found)
}

fn says(text: &str, words: &[String]) -> Result<(), Failed> {
    for words in words {
        ensure(text.contains(words), || format!("{words:?} is not in\n{text}"))?;
    }
    Ok(())
}

/// What there was before a shadow looked.
struct Before {
    kernel: String,
    objects: BTreeMap<PathBuf, Vec<u8>>,
}

impl Before {
    fn of(lab: &Lab) -> Result<Self, Failed> {
        Ok(Self {
            kernel: kernel(&lab.node(1).namespace)?,
            objects: files(&lab.datastore())?,
        })
    }

    /// Nothing is another than it was.
    fn stands(&self, lab: &Lab) -> Result<(), Failed> {
        let now = Self::of(lab)?;
        ensure(now.kernel == self.kernel, || {
            format!("{}\nbecame\n{}", self.kernel, now.kernel)
        })?;
        ensure(now.objects == self.objects, || {
            "the datastore was written".to_owned()
        })
    }
}

/// On a node that BIRD routes: the same routes are taken over as they are; every difference is named; nothing is written;
/// and what the shadow has said is what the agent does.
pub(crate) fn beside_bird(lab: &mut Lab) -> Result<(), Failed> {
    let train = train(lab, "n1p1", "n2p1")?;
    let routed = lab.node(1).namespace.routes()?;
    lab.agent(1).terminate()?;
    hand_to_bird(lab.node(1))?;
    let count = of_bird(&lab.node(1).namespace)?;
    let before = Before::of(lab)?;
    let text = lab.node(1).agent.shadow()?;
    let taken_over = format!("take over: {count} routes of proto bird, as they are");
    says(
        &text,
        &[
            format!("{count} of {count} routes are in the kernel as they should be"),
            taken_over.clone(),
            "add: rule".to_owned(),
        ],
    )?;
    ensure(!text.contains("change:") && !text.contains("leave:"), || {
        text.clone()
    })?;
    before.stands(lab)?;
    as_a_daemon(lab, &before, &taken_over)?;
    train.wait_for_more(5)?;
    arrived(train, 0)?;
    with_differences(lab, count)?;

    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    lab.node(1).namespace.ip("route del 10.65.251.0/26")?;
    wait_for("the routes as they were", PATIENCE, || {
        let now = lab
            .node(1)
            .namespace
            .routes()
            .map_err(|error| error.to_string())?;
        if now == routed {
            Ok(())
        } else {
            Err(now.join("; "))
        }
    })?;
    Ok(())
}

/// With `mode: shadow` it is ready, since every route is there, says the same in its log, and has no socket to be asked for
/// addresses.
fn as_a_daemon(lab: &mut Lab, before: &Before, words: &str) -> Result<(), Failed> {
    lab.node(1).agent.set_mode("shadow")?;
    lab.start_agent(1)?;
    wait_for("the shadow to be ready", PATIENCE, || {
        lab.node(1).agent.not_ready().map_or(Ok(()), Err)
    })?;
    ensure(lab.node(1).agent.status().is_err(), || {
        "the shadow answers on a socket".to_owned()
    })?;
    before.stands(lab)?;
    lab.agent(1).terminate()?;
    says(&lab.node(1).agent.log_text()?, &[words.to_owned()])?;
    Ok(lab.node(1).agent.set_mode("active")?)
}

/// A route that leads elsewhere, one that is missing, and one that nobody wants.
fn with_differences(lab: &mut Lab, count: usize) -> Result<(), Failed> {
    let (second, third) = (
        lab.node(2).blocks()?.swap_remove(0),
        lab.node(3).blocks()?.swap_remove(0),
    );
    let node = &lab.node(1).namespace;
    let wrong = lab.node(2).address;
    node.ip(&format!(
        "route replace {third} via {wrong} dev tunl0 onlink proto bird"
    ))?;
    node.ip(&format!("route del {second}"))?;
    node.ip(&format!(
        "route add 10.65.251.0/26 via {wrong} dev tunl0 onlink proto bird"
    ))?;
    let before = Before::of(lab)?;
    let text = lab.node(1).agent.shadow()?;
    says(
        &text,
        &[
            format!("{} of {count} routes", count - 2),
            format!("change: {third} via {wrong} dev tunl0"),
            format!("becomes {third} via {} dev tunl0", lab.node(3).address),
            format!("add: {second} via {wrong} dev tunl0"),
            "leave: 10.65.251.0/26".to_owned(),
        ],
    )?;
    before.stands(lab)
}
