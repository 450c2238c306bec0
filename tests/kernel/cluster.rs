//! The cluster that trials share: built for the first of a layout, replaced for the next layout or after a failure.

use std::sync::{Arc, Mutex, PoisonError};

use harness::{Lab, Layout, interruption};
use libtest_mimic::Failed;

use crate::Act;

/// The cluster that stands now, if one does.
#[derive(Clone, Default)]
pub(crate) struct Cluster {
    lab: Arc<Mutex<Option<Lab>>>,
}

impl Cluster {
    /// Runs a trial on a cluster of this layout that is up: sessions Established, two pods on every node, all routes there.
    pub(crate) fn with(&self, layout: Layout, act: Act) -> Result<(), Failed> {
        interruption::check()?;
        let mut held = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out, so that a trial that panics takes its cluster with it.
        let standing = match held.take() {
            Some(lab) if *lab.layout() == layout => Some(lab),
            Some(other) => {
                other.down()?;
                None
            }
            None => None,
        };
        let mut lab = match standing {
            Some(lab) => lab,
            None => bring_up(layout)?,
        };
        if let Err(failed) = act(&mut lab) {
            let logs: Vec<_> = lab
                .nodes()
                .map(|n| format!("node{}:\n{}", n.number, n.agent.last_words()))
                .collect();
            let words = failed.message().unwrap_or("it failed").to_owned();
            return Err(format!("{words}\nthe last words of the agents:\n{}", logs.join("\n")).into());
        }
        *held = Some(lab);
        Ok(())
    }

    /// Takes down what stands.
    pub(crate) fn take_down(&self) {
        drop(self.lab.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn bring_up(layout: Layout) -> Result<Lab, Failed> {
    let mut lab = Lab::build(layout)?;
    lab.start_agents()?;
    lab.wait_for_sessions()?;
    lab.attach_everywhere(2)?;
    lab.wait_for_routes()?;
    Ok(lab)
}
