//! An agent that has no more than the chart gives to its container.

use std::fs;
use std::path::Path;

use harness::Lab;
use harness::ping::ping;
use libtest_mimic::Failed;

use crate::continuity::{arrived, as_before, programmed, train};
use crate::ensure;

/// The capabilities of the agent's container, as the chart's template lists them.
fn capabilities() -> Result<Vec<String>, Failed> {
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/culvert/templates/daemonset.yaml");
    let text = fs::read_to_string(template)?;
    let begin = "ternary (list ";
    let (_, list) = text
        .split_once(begin)
        .ok_or("the template has no list of capabilities")?;
    let (list, _) = list.split_once(')').ok_or("the list has no end")?;
    Ok(list
        .split_whitespace()
        .map(|name| name.trim_matches('"').to_owned())
        .collect())
}

/// It starts, keeps every packet, holds its sessions on port 179, repairs a route, finds out the sources of tunnelled packets,
/// and has another pod attached.
pub(crate) fn as_in_a_container(lab: &mut Lab) -> Result<(), Failed> {
    let capabilities = capabilities()?;
    ensure(capabilities.len() == 3, || format!("{capabilities:?}"))?;
    let train = train(lab, "n1p1", "n2p1")?;
    let before = programmed(lab.node(1))?;
    lab.agent(1).terminate()?;
    lab.agent(1).confine(Some(capabilities));
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    as_before(lab.node(1), &before)?;
    train.wait_for_more(5)?;
    arrived(train, 0)?;

    let block = lab.node(2).blocks()?.swap_remove(0);
    lab.node(1).namespace.ip(&format!("route del {block}"))?;
    as_before(lab.node(1), &before)?;
    let pod = lab.attach(1, "confined")?;
    ping(&lab.pod("n2p1").namespace, pod.address)?;
    lab.detach("confined")?;
    let told = lab.node(1).agent.status_text(&[])?;
    ensure(!told.to_lowercase().contains("permitted"), || told.clone())?;

    lab.agent(1).terminate()?;
    lab.agent(1).confine(None);
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    Ok(())
}
