//! BIRD 2 as a node of the mesh.

use std::time::Duration;

use harness::layout::{BIRD_BLOCK, BIRD_POD};
use harness::ping::ping;
use harness::{Lab, wait_for};
use libtest_mimic::Failed;

/// BIRD's kernel has routes to our blocks, ours have one to its block, and packets pass both ways.
pub(crate) fn joins(lab: &mut Lab) -> Result<(), Failed> {
    let bird = lab.bird().ok_or("the layout has no BIRD")?;
    let address = lab.layout().address(lab.layout().bird_number());
    for node in lab.nodes() {
        let wanted = format!("{BIRD_BLOCK} via {address} dev tunl0 proto culvert onlink");
        wait_for(&wanted, Duration::from_secs(60), || has(&node.namespace, &wanted))?;
        for block in node.blocks()? {
            let wanted = format!("{block} via {} dev eth0 proto bird", node.address);
            wait_for(&wanted, Duration::from_secs(60), || has(&bird.namespace, &wanted))
                .map_err(|e| format!("{e}\n{}", bird.ask("show protocols all").unwrap_or_default()))?;
        }
    }
    for pod in lab.pods() {
        ping(&pod.namespace, BIRD_POD)?;
        ping(&bird.namespace, pod.address)?;
    }
    let established = bird.ask("show protocols")?.matches("Established").count();
    crate::ensure(established == lab.nodes().count(), || {
        format!("{established} sessions Established")
    })
}

/// Whether a namespace has a route that begins like this.
fn has(namespace: &harness::Namespace, wanted: &str) -> Result<(), String> {
    let routes = namespace.routes().map_err(|e| e.to_string())?;
    let found = routes.iter().any(|line| line.starts_with(wanted));
    if found { Ok(()) } else { Err(routes.join("; ")) }
}
