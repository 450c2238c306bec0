//! What is wrong with all nodes of a cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use culvert_ipam::check;
use culvert_ipam::forecast::Usage;

use super::super::CliError;
use super::super::members::{MemberArguments, Members};
use crate::allocation;
use crate::api::Service;
use crate::datastore::{self, Datastore, DatastoreError, kubernetes};
use crate::doctor::Report;
use crate::doctor::cluster::{self, Addresses, Cluster, ClusterReport, NodeSeen, PoolUse};
use crate::http::{Peers, Question};
use crate::inventory;
use crate::status::AgentStatus;
use crate::survey;

/// So much longer than the agents the datastore may take to list everything that has an address.
const INVENTORY_TIMES: u32 = 3;

/// Asks all agents, looks at the addresses of the cluster, and judges.
pub(super) async fn examine(arguments: &MemberArguments) -> Result<ClusterReport, CliError> {
    let mut members = arguments.find().await?;
    let terms = arguments.terms();
    let patience = terms.all * INVENTORY_TIMES;
    let Members {
        agents,
        store,
        access,
        ..
    } = &mut members;
    let asked = async {
        let question = Question::Status(Peers::Exceptional);
        let statuses = survey::ask::<AgentStatus>(agents, question, terms).await;
        // What takes a node half a second is asked of those alone that answer at all.
        agents.leave_out(&statuses);
        let reports = survey::ask::<Report>(agents, Question::Doctor, terms).await;
        (statuses, reports)
    };
    let ranges = async {
        let read = tokio::time::timeout(patience, kubernetes::service_ranges(access.as_ref()?)).await;
        read.ok().flatten()
    };
    let ((statuses, reports), addresses, services, service_ranges) = futures_util::join!(
        asked,
        in_time(patience, addresses(store.as_ref())),
        in_time(patience, service_addresses(store.as_ref())),
        ranges,
    );
    let nodes = statuses.into_iter().zip(reports).map(|(status, report)| {
        let told = status.outcome.as_ref().ok().and_then(|told| told.answered);
        NodeSeen {
            node: status.member.node.clone(),
            address: status.member.address,
            clock: told.map(|told| status.clock(told)),
            status: status.outcome.map_err(|reason| reason.to_string()),
            report: report.outcome.map_err(|reason| reason.to_string()),
        }
    });
    let Members { listed_within, .. } = members;
    Ok(cluster::examine(&Cluster {
        nodes: nodes.collect(),
        addresses,
        services,
        service_ranges,
        listed_within,
    }))
}

/// What was read, or in words why not.
async fn in_time<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, DatastoreError>>,
) -> Result<T, String> {
    match tokio::time::timeout(patience, work).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err(format!("not all was listed within {} s", patience.as_secs())),
    }
}

async fn addresses(store: &dyn Datastore) -> Result<Addresses, DatastoreError> {
    let snapshot = inventory::read(store).await?;
    let problems = check::cluster(&snapshot, allocation::now());
    let pools = snapshot.pools.iter().map(|pool| PoolUse {
        name: pool.name().to_owned(),
        cidr: pool.cidr(),
        usage: Usage::of(pool, &snapshot),
    });
    Ok(Addresses {
        pools: pools.collect(),
        problems: problems.into_iter().map(|problem| problem.finding).collect(),
    })
}

/// The addresses of the services, each with a service whose it is.
async fn service_addresses(store: &dyn Datastore) -> Result<BTreeMap<IpAddr, String>, DatastoreError> {
    let services = datastore::list::<Service>(store).await?;
    let mut found = BTreeMap::new();
    for service in services {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = format!("{namespace}/{}", service.metadata.name);
        let addresses = service.spec.cluster_ip.iter().chain(&service.spec.cluster_ips);
        // A headless one says None.
        found.extend(addresses.filter_map(|address| Some((address.parse().ok()?, name.clone()))));
    }
    Ok(found)
}
