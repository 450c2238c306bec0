//! The end of a run: everybody comes to rest, what is left over is collected, and nothing may be wrong then.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::*;

impl World {
    /// Everybody finishes; then what is left over is found and taken back.
    pub(super) fn rest(&mut self) {
        for index in 0..self.processes.len() {
            while !matches!(self.processes[index].work, Work::Idle) {
                self.step(index);
            }
        }
        for _ in 0..self.dice.below(4) {
            self.lose_a_pod();
        }
        // What processes that died had asked for is nobody's: their pods have no address, and never get one.
        self.pods.retain(|_, pod| !pod.addresses.is_empty());
        if self.dice.one_in(4) {
            let gone = format!("n{}", self.dice.below(2));
            self.nodes.remove(&gone);
            self.pods.retain(|_, pod| pod.node != gone);
            let pods = &self.pods;
            self.told.retain(|_, handle| pods.contains_key(handle));
        }
        for round in 0.. {
            assert!(round < 20, "no end of collecting in {:#?}", self.store);
            self.ahead += 100;
            for node in self.nodes.clone() {
                for family in self.families.clone() {
                    self.finish(claim_of(&node, family));
                }
            }
            let before = self.store.writes;
            for _ in 0..2 {
                self.ahead += 100;
                self.look(false);
            }
            while self.collector.is_some() || !self.due.is_empty() {
                self.take_back();
            }
            if self.store.writes == before && round > 3 {
                break;
            }
        }
        self.at_rest();
    }

    fn finish(&mut self, request: Request) {
        let mut driver = Driver::batch(self.policy(), vec![request]);
        driver.ahead = self.ahead;
        while !matches!(driver.step(&mut self.store), Stepped::Done) {
            self.check();
        }
    }

    fn at_rest(&self) {
        let snapshot = self.snapshot();
        let held: BTreeMap<IpAddr, String> = snapshot
            .held()
            .map(|h| (h.address, h.attribute.handle().unwrap().to_owned()))
            .collect();
        assert_eq!(
            held, self.told,
            "the first is taken, the second was told to living pods"
        );
        let problems = check::cluster(&snapshot, self.now());
        let words: Vec<String> = problems.iter().map(|p| p.finding.to_string()).collect();
        assert!(words.is_empty(), "{words:#?}");
    }
}
