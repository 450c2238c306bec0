//! The alerts: each fires when it should, and tells people what to do.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::expression::alerts;
use crate::{Outcome, chart, ensure, promtool};

/// What a page says, in this order.
const SECTIONS: [&str; 3] = ["\n## What it means\n", "\n## How to look\n", "\n## How to mend\n"];

/// Each alert has a page that it names, with all sections, and a test in which it fires and one in which it does not; and
/// there is no page of an alert that is gone.
pub(crate) fn documented() -> Outcome {
    let tests: Value = serde_yaml::from_str(&fs::read_to_string(chart("rules/culvert.test.yaml"))?)?;
    let tests = tests["tests"].as_array().ok_or("no tests")?;
    let of_alerts = tests.iter().filter_map(|test| test["alert_rule_test"].as_array());
    let moments: Vec<&Value> = of_alerts.flatten().collect();
    let mut pages = BTreeSet::new();
    for alert in alerts(&fs::read_to_string(chart("rules/culvert.yaml"))?)? {
        let name = alert["alert"].as_str().ok_or("an alert has a name")?;
        let page = format!("runbooks/{name}.md");
        ensure(alert["annotations"]["runbook_url"] == page.as_str(), || {
            format!("{name}: its runbook_url is not {page}")
        })?;
        let text = fs::read_to_string(chart(&page)).map_err(|error| format!("{page}: {error}"))?;
        let mut rest = text.as_str();
        ensure(rest.starts_with(&format!("# {name}\n")), || {
            format!("{page}: another title")
        })?;
        for section in SECTIONS {
            let (_, after) = rest
                .split_once(section)
                .ok_or(format!("{page} has no {section:?}"))?;
            ensure(after.trim_start().len() > 40, || {
                format!("{page}: nothing in {section:?}")
            })?;
            rest = after;
        }
        pages.insert(format!("{name}.md"));
        for fires in [true, false] {
            let found = moments.iter().any(|moment| {
                let expected = moment["exp_alerts"].as_array();
                moment["alertname"] == name && expected.is_some_and(|alerts| alerts.is_empty() != fires)
            });
            ensure(found, || format!("{name} has no test in which it fires: {fires}"))?;
        }
    }
    for page in fs::read_dir(chart("runbooks"))? {
        let page = page?.file_name().to_string_lossy().into_owned();
        ensure(pages.contains(&page), || {
            format!("runbooks/{page} is of no alert")
        })?;
    }
    Ok(())
}

/// promtool's tests of the rules.
pub(crate) fn tested() -> Outcome {
    promtool(&chart("rules"), &["check", "rules", "culvert.yaml"], "")?;
    promtool(&chart("rules"), &["test", "rules", "culvert.test.yaml"], "")
}

/// The same with every alert a day late: promtool must find each of them missing.
pub(crate) fn tests_can_fail() -> Outcome {
    let folder = tempfile::tempdir()?;
    let rules = fs::read_to_string(chart("rules/culvert.yaml"))?;
    let late: String = rules
        .lines()
        .filter(|line| !line.starts_with("        for:"))
        .map(|line| match line.strip_prefix("        expr:") {
            Some(expression) => format!("        expr:{expression}\n        for: 1d\n"),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(folder.path().join("culvert.yaml"), late)?;
    let test = folder.path().join("culvert.test.yaml");
    fs::copy(chart("rules/culvert.test.yaml"), test)?;
    let Err(said) = promtool(folder.path(), &["test", "rules", "culvert.test.yaml"], "") else {
        return Err("alerts that fire a day late pass their tests".into());
    };
    let said = said.message().unwrap_or_default().to_owned();
    for alert in alerts(&rules)? {
        let name = alert["alert"].as_str().ok_or("an alert has a name")?;
        ensure(said.contains(&format!("alertname: {name},")), || {
            format!("the test of {name} passes though it is a day late:\n{said}")
        })?;
    }
    Ok(())
}
