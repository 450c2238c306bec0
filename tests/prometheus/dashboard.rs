//! The metrics of a real agent, scraped by a real Prometheus, and everything that the chart asks of them.

use std::collections::BTreeSet;
use std::fs;

use culvert_agent::metrics::Metrics;
use culvert_agent::status::AgentStatus;
use harness::{Lab, Layout, Mode};
use libtest_mimic::Failed;

use crate::expression::{Expression, of_alerts, of_dashboard};
use crate::server::Prometheus;
use crate::{Outcome, chart, ensure, promtool};

/// Pods that need more than one of the blocks of eight.
const PODS: u8 = 9;

/// What only hours can show: how long a pool lasts.
const SLOW: &str = "culvert_ipam_pool_seconds_left";

/// All metrics there are: names, types, help, units.
pub(crate) fn linted() -> Outcome {
    let text = Metrics::register()?.scrape(&AgentStatus::default(), false)?;
    promtool(&chart("rules"), &["check", "metrics"], &text)
}

/// Every query of the dashboard has data, every alert can be judged, and both name only metrics that there are.
pub(crate) fn evaluated() -> Outcome {
    let dashboard = of_dashboard(&fs::read_to_string(chart("dashboards/culvert.json"))?)?;
    let alerts = of_alerts(&fs::read_to_string(chart("rules/culvert.yaml"))?)?;
    let mut lab = Lab::build(Layout::new(Mode::Direct))?;
    // So that a few pods need a second block.
    lab.set_in_pool(&[("blockSize", "29")])?;
    let prometheus = Prometheus::start(&lab.node(1).namespace, "node1")?;
    let seen = live(&mut lab, &prometheus);
    let judged = seen.and_then(|()| judge(&lab, &prometheus, &dashboard, &alerts));
    judged.map_err(|failed| {
        let words = failed.message().unwrap_or_default();
        Failed::from(format!("{words}\nthe agent:\n{}", lab.node(1).agent.last_words()))
    })
}

/// What the metrics are about happens while Prometheus looks: sessions come up, routes and pods come and go, a peer is lost.
fn live(lab: &mut Lab, prometheus: &Prometheus) -> Outcome {
    lab.start_agent(1)?;
    // A rate begins with the second sight of a counter.
    prometheus.wait_for("sum_over_time(up{job=\"culvert-metrics\"}[1h])", |seen| {
        seen >= 2.0
    })?;
    lab.start_agent(2)?;
    lab.start_agent(3)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    for pod in 0..PODS {
        lab.attach(1, &format!("p{pod}"))?;
    }
    lab.detach("p0")?;
    // Both blocks to both peers; the second while the sessions stand, when nothing else changes for the speaker.
    prometheus.wait_for("culvert_bgp_prefixes_sent", |sent| sent >= 4.0)?;
    prometheus.wait_for("culvert_block_advertisement_duration_seconds_count", |count| {
        count >= 1.0
    })?;
    lab.agent(3).kill()?;
    prometheus.wait_for("culvert_bgp_peer_up", |up| up == 0.0)?;
    Ok(())
}

fn judge(lab: &Lab, prometheus: &Prometheus, dashboard: &[Expression], alerts: &[Expression]) -> Outcome {
    let (_, scrape) = lab.node(1).agent.page("/metrics")?;
    promtool(&chart("rules"), &["check", "metrics"], &scrape)?;
    for panel in dashboard.iter().filter(|panel| !panel.text.contains(SLOW)) {
        prometheus
            .wait_for(&panel.text, |_| true)
            .map_err(|error| format!("panel {}: {error}", panel.of))?;
    }
    let names: BTreeSet<String> = prometheus.names()?.into_iter().chain([SLOW.to_owned()]).collect();
    for expression in dashboard.iter().chain(alerts) {
        prometheus.query(&expression.text)?;
        let named = expression.metrics();
        let unknown: Vec<_> = named.difference(&names).collect();
        ensure(unknown.is_empty(), || {
            format!("{}: no such metrics: {unknown:?}", expression.of)
        })?;
    }
    Ok(())
}
