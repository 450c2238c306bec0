//! Trials on a real kernel: whole clusters of real agents, pods and peers. They need root, and most of them ipip
//! (`tests/run` brings a kernel that has it).

mod bird;
mod borrowed;
mod cluster;
mod continuity;
mod encapsulation;
mod hands;
mod pods;
mod pools;
mod restart;
mod two_networks;

use std::process::ExitCode;

use harness::{Layout, Mode, interruption, kernel};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::cluster::Cluster;

/// How a trial goes: on a cluster that is up and carries traffic.
type Act = fn(&mut harness::Lab) -> Result<(), Failed>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The trials share clusters, and measure: one at a time.
    arguments.test_threads = Some(1);
    if std::env::var_os("CULVERT_KERNEL_TRIALS").is_some_and(|value| value == "elsewhere") {
        println!("kernel trials: left out here (CULVERT_KERNEL_TRIALS=elsewhere)");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = interruption::listen() {
        eprintln!("kernel trials: {error}");
        return ExitCode::FAILURE;
    }
    let cluster = Cluster::default();
    let conclusion = libtest_mimic::run(&arguments, trials(&cluster));
    cluster.take_down();
    conclusion.exit_code()
}

const DIRECT: Layout = Layout::new(Mode::Direct);
const CROSS_SUBNET: Layout = Layout::new(Mode::CrossSubnet);
const IPIP: Layout = Layout::new(Mode::Ipip);
const WITH_BIRD: Layout = Layout {
    nodes: 2,
    bird: true,
    ..IPIP
};

const TWO_NETWORKS: Layout = Layout::on_two_networks();

/// All trials; those on the same layout one after the other.
#[rustfmt::skip]
const TRIALS: [(Layout, &str, Act); 30] = [
    (DIRECT, "direct_mode_carries_pod_traffic_without_tunnels", encapsulation::carries),
    (CROSS_SUBNET, "crosssubnet_mode_tunnels_between_subnets_only", encapsulation::carries),
    (CROSS_SUBNET, "a_pool_whose_ipip_mode_changes_loses_no_packet_across_subnets", pools::modes_across_subnets),
    (IPIP, "ipip_mode_tunnels_between_all_nodes", encapsulation::carries),
    (IPIP, "routes_look_as_an_operator_of_calico_expects", encapsulation::looks_like_calico),
    (IPIP, "a_new_pod_is_reachable_and_a_deleted_one_leaves_nothing", pods::come_and_go),
    (IPIP, "a_wrong_next_hop_put_in_by_hand_is_repaired", hands::wrong_next_hop),
    (IPIP, "deleted_routes_come_back", hands::deleted_routes),
    (IPIP, "a_tunnel_set_down_by_hand_comes_back_with_its_routes", hands::tunnel_down),
    (IPIP, "foreign_routes_are_never_touched", hands::foreign_routes),
    (IPIP, "a_killed_agent_loses_no_packet", restart::kill),
    (IPIP, "an_agent_ends_within_a_second_and_its_routes_stay", restart::terminate),
    (IPIP, "what_went_wrong_while_the_agent_was_down_is_repaired_at_its_start", restart::wrong_at_start),
    (IPIP, "cleanup_removes_all_that_is_ours_and_nothing_else", restart::clean_up),
    (IPIP, "a_pool_whose_ipip_mode_changes_loses_no_packet", pools::modes),
    (IPIP, "a_pool_that_is_disabled_keeps_its_routes", pools::disabled),
    (IPIP, "a_pool_that_is_not_exported_is_withdrawn_and_comes_back", pools::not_exported),
    (IPIP, "an_address_borrowed_from_another_nodes_block_is_reached_from_everywhere", borrowed::reached),
    (IPIP, "an_agent_restarted_twice_in_a_row_loses_no_packet", continuity::twice),
    (IPIP, "a_datastore_that_is_away_for_a_while_costs_no_packet", continuity::datastore_away),
    (IPIP, "a_datastore_emptied_by_accident_costs_no_packet_and_is_told", continuity::datastore_emptied),
    (IPIP, "a_deleted_node_loses_its_routes_and_the_others_no_packet", continuity::node_deleted),
    (IPIP, "a_tunnel_that_goes_down_costs_little", continuity::tunnel_down),
    (IPIP, "a_nic_that_was_down_carries_traffic_again", continuity::nic_down),
    (IPIP, "an_advertised_address_that_was_gone_carries_traffic_again", continuity::address_gone),
    (WITH_BIRD, "bird_learns_our_blocks_and_we_install_its_own", bird::joins),
    (TWO_NETWORKS, "every_outer_source_is_the_advertised_address_of_its_sender", two_networks::sources),
    (TWO_NETWORKS, "without_pins_the_wrong_source_shows_and_is_told", two_networks::switched_off),
    (TWO_NETWORKS, "pins_undone_by_hand_come_back", two_networks::undone_by_hand),
    (TWO_NETWORKS, "cleanup_removes_the_rule_and_the_pins", two_networks::clean_up),
];

/// The trials, for the runner. What cannot run here says so loudly.
fn trials(cluster: &Cluster) -> Vec<Trial> {
    let missing = (kernel::no_namespaces(), kernel::no_ipip());
    let trial = |(layout, name, act): (Layout, &'static str, Act)| {
        let cluster = cluster.clone();
        let reason = match &missing {
            (Some(reason), _) => Some(reason.clone()),
            (None, Some(reason)) if layout.mode != Mode::Direct => Some(reason.clone()),
            _ => None,
        };
        Trial::ignorable_test(name, move || {
            if let Some(reason) = reason {
                eprintln!("NOT RUN: {name}: {reason}");
                return Ok(Completion::ignored_with(reason));
            }
            cluster.with(layout, act).map(|()| Completion::Completed)
        })
    };
    TRIALS.into_iter().map(trial).collect()
}

/// Fails a trial with words, unless a condition holds.
fn ensure(condition: bool, words: impl FnOnce() -> String) -> Result<(), Failed> {
    if condition { Ok(()) } else { Err(words().into()) }
}
