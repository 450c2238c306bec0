//! Trials on a real kernel: whole clusters of real agents, pods and peers. They need root, and most of them ipip
//! (`tests/run` brings a kernel that has it).

mod bird;
mod borrowed;
mod cluster;
mod confined;
mod continuity;
mod doctor;
mod dual_stack;
mod encapsulation;
mod explained;
mod faults;
mod fights;
mod filter;
mod hands;
mod migration;
mod multipath;
mod nics;
mod plugins;
mod pods;
mod pools;
mod reboot;
mod renumbering;
mod restart;
mod shadow;
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
    let wanted = std::env::var("CULVERT_KERNEL_TRIALS").unwrap_or_default();
    let with: &[Needs] = match wanted.as_str() {
        "" => &[Needs::Tunnels, Needs::Filter],
        "tunnels" => &[Needs::Tunnels],
        "filter" => &[Needs::Filter],
        _ => {
            println!("kernel trials: left out here (CULVERT_KERNEL_TRIALS={wanted})");
            return ExitCode::SUCCESS;
        }
    };
    if let Err(error) = interruption::listen() {
        eprintln!("kernel trials: {error}");
        return ExitCode::FAILURE;
    }
    let cluster = Cluster::default();
    let conclusion = libtest_mimic::run(&arguments, trials(&cluster, with));
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

const PAIR: Layout = Layout {
    nodes: 2,
    second_nic: None,
    ..IPIP
};
const DUAL_STACK: Layout = Layout {
    nodes: 2,
    second_nic: None,
    dual_stack: true,
    ..IPIP
};
const TWO_NETWORKS: Layout = Layout::on_two_networks();
const STACKED: Layout = Layout::on_stacked_nics(Mode::Ipip);
const STACKED_CROSS_SUBNET: Layout = Layout::on_stacked_nics(Mode::CrossSubnet);
const FILTERED: Layout = Layout {
    nodes: 4,
    ..TWO_NETWORKS
};

/// What a trial needs of the kernel beyond namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Tunnels, unless its layout has none.
    Tunnels,
    /// Tunnels, and nf_tables for IPv4.
    Filter,
}

/// All trials that need no packet filter; those on the same layout one after the other.
#[rustfmt::skip]
const TRIALS: [(Layout, &str, Act); 59] = [
    (DIRECT, "direct_mode_carries_pod_traffic_without_tunnels", encapsulation::carries),
    (DIRECT, "the_routes_of_peers_are_shown_and_a_session_is_cleared", explained::peers),
    (CROSS_SUBNET, "crosssubnet_mode_tunnels_between_subnets_only", encapsulation::carries),
    (CROSS_SUBNET, "a_pool_whose_ipip_mode_changes_loses_no_packet_across_subnets", pools::modes_across_subnets),
    (CROSS_SUBNET, "of_two_ways_to_a_node_the_other_carries_on_when_a_nic_goes_down", multipath::nic_down),
    (IPIP, "ipip_mode_tunnels_between_all_nodes", encapsulation::carries),
    (IPIP, "routes_look_as_an_operator_of_calico_expects", encapsulation::looks_like_calico),
    (IPIP, "path_mtu_discovery_of_the_tunnel_is_as_configured", encapsulation::path_mtu_discovery),
    (IPIP, "a_new_pod_is_reachable_and_a_deleted_one_leaves_nothing", pods::come_and_go),
    (IPIP, "a_plugin_killed_between_any_two_steps_leaves_nothing_after_the_next_del", plugins::killed),
    (IPIP, "a_host_port_leads_to_its_pod_through_the_chained_plugin", plugins::host_port),
    (IPIP, "a_wrong_next_hop_put_in_by_hand_is_repaired", hands::wrong_next_hop),
    (IPIP, "deleted_routes_come_back", hands::deleted_routes),
    (IPIP, "a_tunnel_set_down_by_hand_comes_back_with_its_routes", hands::tunnel_down),
    (IPIP, "forwarding_that_was_switched_off_is_switched_on_again", hands::forwarding_off),
    (IPIP, "a_fight_over_a_route_is_told_and_slowed_and_won_when_the_other_stops", fights::over_a_route),
    (IPIP, "a_program_that_keeps_deleting_a_route_is_told_and_its_route_comes_back_when_it_stops", fights::over_a_deletion),
    (IPIP, "foreign_routes_are_never_touched", hands::foreign_routes),
    (IPIP, "the_way_to_a_pod_is_explained_and_nothing_is_found_where_all_is_well", explained::well),
    (IPIP, "a_wrong_next_hop_and_a_lost_session_are_found_by_asking_for_the_way", explained::faults),
    (IPIP, "packets_are_followed_from_pod_to_pod_and_the_place_where_they_vanish_is_named", faults::on_the_way),
    (IPIP, "faults_in_the_datastore_are_found_by_the_doctor", faults::in_the_datastore),
    (IPIP, "a_datastore_that_is_away_is_found_by_the_doctor", faults::datastore_away),
    (IPIP, "what_others_keep_undoing_is_found_by_the_doctor", faults::undone),
    (IPIP, "what_keeps_a_session_down_is_found_by_the_doctor", faults::sessions),
    (IPIP, "a_killed_agent_loses_no_packet", restart::kill),
    (IPIP, "an_agent_ends_within_a_second_and_its_routes_stay", restart::terminate),
    (IPIP, "what_went_wrong_while_the_agent_was_down_is_repaired_at_its_start", restart::wrong_at_start),
    (IPIP, "cleanup_removes_all_that_is_ours_and_nothing_else", restart::clean_up),
    (IPIP, "beside_bird_a_shadow_names_every_difference_and_writes_nothing", shadow::beside_bird),
    (IPIP, "nodes_of_calico_are_taken_over_one_by_one_and_given_back_with_no_packet_lost", migration::node_by_node),
    (IPIP, "a_pool_whose_ipip_mode_changes_loses_no_packet", pools::modes),
    (IPIP, "a_pool_that_is_disabled_keeps_its_routes", pools::disabled),
    (IPIP, "a_pool_that_is_not_exported_is_withdrawn_and_comes_back", pools::not_exported),
    (IPIP, "an_address_borrowed_from_another_nodes_block_is_reached_from_everywhere", borrowed::reached),
    (IPIP, "an_agent_restarted_twice_in_a_row_loses_no_packet", continuity::twice),
    (IPIP, "an_upgraded_agent_loses_no_packet", continuity::upgraded),
    (IPIP, "a_datastore_that_is_away_for_a_while_costs_no_packet", continuity::datastore_away),
    (IPIP, "a_datastore_emptied_by_accident_costs_no_packet_and_is_told", continuity::datastore_emptied),
    (IPIP, "a_deleted_node_loses_its_routes_and_the_others_no_packet", continuity::node_deleted),
    (IPIP, "a_tunnel_that_goes_down_costs_little", continuity::tunnel_down),
    (IPIP, "a_nic_that_was_down_carries_traffic_again", continuity::nic_down),
    (IPIP, "an_advertised_address_that_was_gone_carries_traffic_again", continuity::address_gone),
    (IPIP, "an_address_that_is_changed_on_purpose_is_taken_without_a_restart", renumbering::on_purpose),
    (IPIP, "a_node_that_reboots_without_the_datastore_has_its_routes_back", reboot::without_the_datastore),
    (IPIP, "an_agent_with_no_more_than_the_charts_capabilities_makes_tunnel_and_routes", confined::routes),
    (PAIR, "a_pool_without_an_address_left_is_found_by_the_doctor", faults::pool_exhausted),
    (DUAL_STACK, "pods_reach_each_other_through_the_tunnel_by_ipv4_and_directly_by_ipv6", dual_stack::carries),
    (DUAL_STACK, "a_restarted_agent_loses_no_packet_of_ipv6", dual_stack::restarted),
    (DUAL_STACK, "routes_of_ipv6_go_with_their_pool_and_those_of_ipv4_stay", dual_stack::pool_deleted),
    (STACKED, "on_a_vlan_a_bond_and_a_bridge_all_pods_reach_each_other_through_tunnels", encapsulation::carries),
    (STACKED, "pins_and_mtu_follow_the_vlan_the_bond_and_the_bridge", nics::pins_and_mtu),
    (STACKED, "a_lower_device_that_was_down_carries_traffic_again", nics::lower_device_down),
    (STACKED_CROSS_SUBNET, "on_a_vlan_a_bond_and_a_bridge_only_what_crosses_subnets_is_tunnelled", encapsulation::carries),
    (WITH_BIRD, "bird_learns_our_blocks_and_we_install_its_own", bird::joins),
    (TWO_NETWORKS, "every_outer_source_is_the_advertised_address_of_its_sender", two_networks::sources),
    (TWO_NETWORKS, "without_pins_the_wrong_source_shows_and_is_told", two_networks::switched_off),
    (TWO_NETWORKS, "pins_undone_by_hand_come_back", two_networks::undone_by_hand),
    (TWO_NETWORKS, "cleanup_removes_the_rule_and_the_pins", two_networks::clean_up),
];

/// The trials that need one.
#[rustfmt::skip]
const FILTER_TRIALS: [(Layout, &str, Act); 4] = [
    // The first: what another lets be refused is told for an hour.
    (FILTERED, "the_doctor_finds_nothing_on_a_node_that_is_well_and_names_what_was_broken", doctor::faults),
    (FILTERED, "tunnelled_packets_from_unknown_sources_are_dropped_counted_and_told", filter::unknown_sources),
    (FILTERED, "nat_outgoing_replaces_the_source_of_what_leaves_the_cluster_and_of_nothing_else", filter::nat_outgoing),
    (FILTERED, "a_host_reaches_a_service_whose_pod_is_behind_the_tunnel", filter::host_to_service),
];

/// The trials, for the runner. What cannot run here says so loudly.
fn trials(cluster: &Cluster, with: &[Needs]) -> Vec<Trial> {
    let (namespaces, ipip) = (kernel::no_namespaces(), kernel::no_ipip());
    let filter = kernel::no_filter();
    let trial = |needs: Needs, (layout, name, act): (Layout, &'static str, Act)| {
        let cluster = cluster.clone();
        let ipip = ipip.as_ref().filter(|_| layout.mode != Mode::Direct);
        let filter = filter.as_ref().filter(|_| needs == Needs::Filter);
        let reason = namespaces.as_ref().or(ipip).or(filter).cloned();
        Trial::ignorable_test(name, move || {
            if let Some(reason) = reason {
                eprintln!("NOT RUN: {name}: {reason}");
                return Ok(Completion::ignored_with(reason));
            }
            cluster.with(layout, act).map(|()| Completion::Completed)
        })
    };
    let tunnels = TRIALS.into_iter().map(|row| (Needs::Tunnels, row));
    let filtered = FILTER_TRIALS.into_iter().map(|row| (Needs::Filter, row));
    let all = tunnels.chain(filtered).filter(|(needs, _)| with.contains(needs));
    all.map(|(needs, row)| trial(needs, row)).collect()
}

/// Fails a trial with words, unless a condition holds.
fn ensure(condition: bool, words: impl FnOnce() -> String) -> Result<(), Failed> {
    if condition { Ok(()) } else { Err(words().into()) }
}
