//! What is asked for, in the files of the chart.

use std::collections::BTreeSet;

use libtest_mimic::Failed;
use serde_json::Value;

/// A query, and where it is from.
pub(crate) struct Expression {
    /// The panel and its legend, or the alert.
    pub(crate) of: String,
    /// In PromQL.
    pub(crate) text: String,
}

impl Expression {
    /// The agent's metrics that it names.
    pub(crate) fn metrics(&self) -> BTreeSet<String> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = self.text.split(|c| !word(c));
        words
            .filter(|word| word.starts_with("culvert_") || word.starts_with("process_"))
            .map(str::to_owned)
            .collect()
    }
}

/// All queries of the dashboard.
pub(crate) fn of_dashboard(text: &str) -> Result<Vec<Expression>, Failed> {
    let dashboard: Value = serde_json::from_str(text)?;
    let panels = dashboard["panels"].as_array().ok_or("a dashboard has panels")?;
    let mut all = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = target["expr"].as_str().ok_or("a target has an expression")?;
            all.push(Expression {
                of: format!("{}, {}", panel["title"], target["legendFormat"]),
                text: text.to_owned(),
            });
        }
    }
    Ok(all)
}

/// The expressions of all alerts, by name.
pub(crate) fn of_alerts(text: &str) -> Result<Vec<Expression>, Failed> {
    alerts(text)?
        .iter()
        .map(|alert| {
            let field = |name: &str| alert[name].as_str().map(str::to_owned);
            let (of, text) = field("alert").zip(field("expr")).ok_or("an alert has a name")?;
            Ok(Expression { of, text })
        })
        .collect()
}

/// All alerts.
pub(crate) fn alerts(text: &str) -> Result<Vec<Value>, Failed> {
    let rules: Value = serde_yaml::from_str(text)?;
    let groups = rules["groups"].as_array().ok_or("rules have groups")?;
    let of_groups = groups.iter().filter_map(|group| group["rules"].as_array());
    Ok(of_groups.flatten().cloned().collect())
}
