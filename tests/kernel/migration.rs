//! From Calico to Culvert and back, node by node, while pods talk to each other.
//!
//! The routing daemon is BIRD, configured as Calico does it. What Calico's fork of it writes into the kernel by way of
//! `krt_tunnel`, which the BIRD of distributions lacks, is there from the beginning with BIRD's mark.

use std::collections::BTreeMap;

use harness::bird::Bird;
use harness::ping::PingTrain;
use harness::{Lab, Namespace, Node, wait_for};
use libtest_mimic::Failed;

use crate::continuity::{GENEROUS, WAGONS, arrived, train};
use crate::ensure;

/// As in the steps of the chart's README.
const GIVE_BACK: &str =
    "ip route show proto 86 | while read -r route; do ip route replace $route proto bird; done";

/// The nodes that BIRD still routes, and what it is told of each.
struct Calico {
    birds: BTreeMap<u8, Bird>,
    blocks: BTreeMap<u8, Vec<String>>,
}

/// Every node in turn is taken over, and the first given back in between: no packet is lost.
pub(crate) fn node_by_node(lab: &mut Lab) -> Result<(), Failed> {
    let trains = [
        train(lab, "n1p1", "n2p1")?,
        train(lab, "n2p2", "n3p1")?,
        train(lab, "n3p2", "n1p2")?,
    ];
    let mut calico = Calico::everywhere(lab)?;
    still_arrive("all are Calico's", &trains)?;
    calico.take_over(lab, 1)?;
    still_arrive("node1 taken over", &trains)?;
    calico.give_back(lab, 1)?;
    still_arrive("node1 given back", &trains)?;
    for number in [1, 2, 3] {
        calico.take_over(lab, number)?;
        still_arrive(&format!("node{number} taken over"), &trains)?;
    }
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    for train in trains {
        arrived(train, 0)?;
    }
    Ok(())
}

impl Calico {
    /// The cluster as Calico would have left it: its objects in the datastore, its routes in the kernels, a mesh of BIRDs.
    fn everywhere(lab: &mut Lab) -> Result<Self, Failed> {
        let blocks: Result<BTreeMap<_, _>, Failed> = lab
            .nodes()
            .map(|node| Ok((node.number, node.blocks()?)))
            .collect();
        let mut calico = Self {
            birds: BTreeMap::new(),
            blocks: blocks?,
        };
        let numbers: Vec<u8> = calico.blocks.keys().copied().collect();
        for number in numbers {
            lab.agent(number).terminate()?;
            calico.hand_over(lab, number)?;
        }
        calico.settled()?;
        Ok(calico)
    }

    /// Puts BIRD in the place of an agent that has ended.
    fn hand_over(&mut self, lab: &Lab, number: u8) -> Result<(), Failed> {
        hand_to_bird(lab.node(number))?;
        let bird = lab.start_bird_of_calico(number, &self.blocks[&number])?;
        self.birds.insert(number, bird);
        Ok(())
    }

    /// Every BIRD has a session with every other node.
    fn settled(&self) -> Result<(), Failed> {
        let wanted = self.blocks.len() - 1;
        for (number, bird) in &self.birds {
            wait_for(
                &format!("the sessions of BIRD on node{number}"),
                GENEROUS * 2,
                || {
                    let said = bird.ask("show protocols").map_err(|error| error.to_string())?;
                    if said.matches("Established").count() == wanted {
                        Ok(())
                    } else {
                        Err(said)
                    }
                },
            )?;
        }
        Ok(())
    }

    fn take_over(&mut self, lab: &mut Lab, number: u8) -> Result<(), Failed> {
        let node = lab.node(number);
        let count = of_bird(&node.namespace)?;
        let said = node.agent.shadow()?;
        let words = format!("take over: {count} routes of proto bird, as they are");
        let agrees = said.contains(&words) && !said.contains("change:") && !said.contains("leave:");
        ensure(agrees && count > 1, || {
            format!("{words} is not what was said:\n{said}")
        })?;

        self.birds.remove(&number).ok_or("no BIRD there")?.kill();
        lab.start_agent(number)?;
        let wanted = self.blocks.len() - 1;
        let node = lab.node(number);
        wait_for(&format!("node{number} to be taken over"), GENEROUS * 2, || {
            if let Some(why) = node.agent.not_ready() {
                return Err(why);
            }
            let status = node.agent.status().map_err(|error| error.to_string())?;
            if status.established() == wanted {
                Ok(())
            } else {
                Err(format!("{:?}", status.sessions()))
            }
        })?;
        wait_for("BIRD to have no route any more", GENEROUS, || {
            match of_bird(&node.namespace) {
                Ok(0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        self.settled()
    }

    fn give_back(&mut self, lab: &mut Lab, number: u8) -> Result<(), Failed> {
        let count = {
            let routes = lab.node(number).namespace.ip("route show proto 86")?;
            routes.lines().count()
        };
        lab.agent(number).terminate()?;
        self.hand_over(lab, number)?;
        self.settled()?;
        let node = &lab.node(number).namespace;
        let left = node.ip("route show table all proto 86")?;
        ensure(of_bird(node)? == count && left.trim().is_empty(), || left.clone())
    }
}

/// Gives the routes of a node whose agent has ended to BIRD, and takes away what only Culvert has.
pub(crate) fn hand_to_bird(node: &Node) -> Result<(), Failed> {
    node.namespace.run("sh", &["-c", GIVE_BACK])?;
    node.agent.clean_up()?;
    Ok(())
}

/// How many routes carry BIRD's mark.
pub(crate) fn of_bird(node: &Namespace) -> Result<usize, Failed> {
    Ok(node.ip("route show proto bird")?.lines().count())
}

fn still_arrive(after: &str, trains: &[PingTrain]) -> Result<(), Failed> {
    for train in trains {
        train.wait_for_more(WAGONS)?;
    }
    let answered: Vec<_> = trains.iter().map(PingTrain::answered).collect();
    println!("  {after}: {answered:?} packets answered so far");
    Ok(())
}
