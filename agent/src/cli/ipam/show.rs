//! `culvert ipam show`, in the tables of calicoctl.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Args;
use comfy_table::{CellAlignment, Table};
use culvert_ipam::block::{Block, Owner};
use culvert_ipam::forecast::{Forecast, Sample, Usage, forecast};
use culvert_ipam::pool::Pool;
use culvert_ipam::snapshot::Snapshot;
use culvert_ipam::timestamp::Timestamp;

use super::super::CliError;
use super::super::store::StoreArguments;
use crate::inventory;
use crate::table::{boxed, printable};

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    /// Who has this address.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["show_blocks", "show_borrowed", "show_configuration"])]
    ip: Option<IpAddr>,
    /// The blocks of each pool as well.
    #[arg(long, conflicts_with_all = ["show_borrowed", "show_configuration"])]
    show_blocks: bool,
    /// The addresses that nodes have borrowed from blocks of others.
    #[arg(long, conflicts_with = "show_configuration")]
    show_borrowed: bool,
    /// The settings of allocation.
    #[arg(long)]
    show_configuration: bool,
    #[command(flatten)]
    store: StoreArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let text = arguments.store.run(async |store| {
        let snapshot = inventory::read(store.as_ref()).await?;
        Ok(match arguments.ip {
            Some(address) => holder(&snapshot, address),
            None if arguments.show_borrowed => borrowed(&snapshot),
            None if arguments.show_configuration => configuration(&snapshot),
            None => usage(&snapshot, arguments.show_blocks),
        })
    })?;
    super::super::print(&text)
}

const USAGE: [&str; 7] = [
    "GROUPING",
    "CIDR",
    "IPS TOTAL",
    "IPS IN USE",
    "IPS RESERVED",
    "IPS FREE",
    "IPS COOLING",
];

/// How the pools are used, with a line for each that will be used up.
fn usage(snapshot: &Snapshot, with_blocks: bool) -> String {
    let mut table = boxed(USAGE);
    for column in 2..USAGE.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut remarks = String::new();
    for pool in snapshot.pools.iter() {
        let usage = Usage::of(pool, snapshot);
        table.add_row(row("IP Pool", &pool.cidr().to_string(), usage));
        remarks += &outlook(pool, usage, snapshot).unwrap_or_default();
        let blocks = snapshot.live_blocks().map(|stored| &stored.spec);
        for block in blocks.filter(|block| with_blocks && pool.cidr().contains(&block.cidr)) {
            table.add_row(row(
                "Block",
                &block.cidr.to_string(),
                usage_of_block(block, snapshot),
            ));
        }
    }
    for wrong in snapshot.pools.wrong() {
        remarks += &format!("Not counted: {wrong}.\n");
    }
    format!("{table}\n{remarks}")
}

fn usage_of_block(block: &Block, snapshot: &Snapshot) -> Usage {
    let mut usage = Usage {
        total: block.allocations.len() as u128,
        ..Usage::default()
    };
    let mut taken_and_reserved = 0;
    for taken in block.taken() {
        if taken.attribute.rests() {
            usage.resting += 1;
        } else {
            usage.in_use += 1;
        }
        taken_and_reserved += u128::from(snapshot.reserved.contains(taken.address));
    }
    let reserved = snapshot.reserved.count_in(block.cidr);
    usage.reserved = reserved.saturating_sub(taken_and_reserved);
    usage
}

/// As calicoctl counts, an address that rests is in use as well.
fn row(grouping: &str, cidr: &str, usage: Usage) -> [String; USAGE.len()] {
    let part = |count: u128| format!("{} ({}%)", number(count), percent(count, usage.total));
    [
        grouping.to_owned(),
        cidr.to_owned(),
        number(usage.total),
        part(usage.in_use.saturating_add(usage.resting)),
        part(usage.reserved),
        part(usage.free()),
        part(usage.resting),
    ]
}

/// calicoctl prints five digits; here that begins where nobody counts addresses any more.
fn number(count: u128) -> String {
    const EXACT: u128 = 1_000_000_000_000;
    if count < EXACT {
        return count.to_string();
    }
    let digits = count.to_string();
    let (first, rest) = digits.split_at(1);
    let fraction = rest.get(..4).unwrap_or(rest).trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{first}{point}{fraction}e+{}", rest.len())
}

/// Rounded to the nearest.
fn percent(count: u128, total: u128) -> u128 {
    if total == 0 {
        return 0;
    }
    let twice = total.saturating_mul(2);
    // Beyond 2^120 the numbers are divided first: nobody sees the difference.
    match count.checked_mul(200).and_then(|n| n.checked_add(total)) {
        Some(scaled) => scaled / twice,
        None => count / (total / 100).max(1),
    }
}

/// How long a pool lasts, from when the addresses that are in use now were taken.
fn outlook(pool: &Pool, usage: Usage, snapshot: &Snapshot) -> Option<String> {
    const YEAR: u128 = 365 * 86_400;
    let mut times: Vec<Timestamp> = snapshot
        .held()
        .filter(|held| pool.cidr().contains(&held.address))
        .filter_map(|held| Timestamp::parse(held.attribute.value("timestamp")?))
        .collect();
    times.sort_unstable();
    let samples: Vec<Sample> = times
        .iter()
        .zip(1..)
        .map(|(&at, in_use)| Sample { at, in_use })
        .collect();
    let Forecast {
        per_day,
        seconds_left,
    } = forecast(usage.free(), &samples)?;
    let left = seconds_left.filter(|left| *left < YEAR)?;
    Some(format!(
        "Pool {}: {} addresses are left; at the present rate ({per_day} a day) they last {}.\n",
        pool.name(),
        usage.free(),
        duration(left)
    ))
}

fn duration(seconds: u128) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Who has an address.
fn holder(snapshot: &Snapshot, address: IpAddr) -> String {
    let holder = snapshot.live_blocks().find_map(|stored| {
        let ordinal = stored.spec.ordinal_of(address)?;
        stored.spec.holder(ordinal)
    });
    let Some(attribute) = holder.filter(|attribute| !attribute.rests()) else {
        return format!("{address} is not assigned\n");
    };
    let mut text = format!(
        "IP {address} is in use\nHandle ID: {}\n",
        printable(attribute.handle_id.as_deref().unwrap_or("<none>"))
    );
    let owner = attribute.secondary.as_ref().filter(|owner| !owner.is_empty());
    match owner {
        Some(owner) => text += &attributes("Active Owner Attributes", owner),
        None => text += "No Active Owner attributes defined\n",
    }
    text
}

fn attributes(title: &str, values: &BTreeMap<String, String>) -> String {
    let lines = values
        .iter()
        .map(|(key, value)| format!("  {}: {}\n", printable(key), printable(value)));
    format!("{title}:\n{}", lines.collect::<String>())
}

/// The addresses that a node has of a block that is not its own.
fn borrowed(snapshot: &Snapshot) -> String {
    let mut table = boxed([
        "IP",
        "BORROWING-NODE",
        "BLOCK",
        "BLOCK OWNER",
        "TYPE",
        "ALLOCATED-TO",
    ]);
    let mut unknown = 0;
    for held in snapshot.held() {
        let Some(node) = held.attribute.value("node") else {
            unknown += 1;
            continue;
        };
        let owner = match held.owner {
            Owner::Host(owner) | Owner::Virtual(owner) => owner,
            Owner::None => "",
        };
        if owner == node {
            continue;
        }
        let (kind, to) = match held.pod() {
            Some((namespace, pod)) => ("pod", format!("{namespace}/{pod}")),
            None => (held.attribute.value("type").unwrap_or_default(), String::new()),
        };
        table.add_row([
            held.address.to_string(),
            printable(node),
            held.block.to_string(),
            printable(owner),
            printable(kind),
            printable(&to),
        ]);
    }
    let mut text = with_line_end(&table);
    if unknown > 0 {
        text += &format!(
            "\nNote: {unknown} addresses do not say which node they are for: whether they are borrowed is not known.\n"
        );
    }
    text
}

fn configuration(snapshot: &Snapshot) -> String {
    let limits = snapshot.limits;
    let mut table = boxed(["PROPERTY", "VALUE"]);
    table.add_row(["StrictAffinity", &limits.strict_affinity.to_string()]);
    table.add_row(["AutoAllocateBlocks", &limits.auto_allocate_blocks.to_string()]);
    table.add_row(["MaxBlocksPerHost", &limits.max_blocks_per_host.to_string()]);
    table.add_row(["IPCooldownSeconds", &limits.cooldown_seconds.to_string()]);
    with_line_end(&table)
}

fn with_line_end(table: &Table) -> String {
    format!("{table}\n")
}
