//! The routes as a table for people.

use std::fmt::Write as _;

use super::{RibRoute, RibRoutes, RibTable};
use crate::table::{plain, printable};

impl RibRoutes {
    /// The routes of `table` in columns, and how many are left out. Where there is none, a sentence says so.
    #[must_use]
    pub fn render(&self, table: RibTable) -> String {
        if self.routes.is_empty() {
            return "No routes.\n".to_owned();
        }
        let rows: Vec<Vec<String>> = self.routes.iter().map(|route| row(route, table)).collect();
        let mut text = plain(header(table), &rows);
        if self.left_out > 0 {
            let _ = writeln!(
                text,
                "{} more routes are left out; name a range with --within, or a peer with --peer",
                self.left_out
            );
        }
        text
    }
}

/// All columns; the best routes have the first three, what is told to peers has all but the last.
const COLUMNS: [&str; 8] = [
    "DESTINATION",
    "NEXT HOP",
    "PEER",
    "AS PATH",
    "LOCAL PREF",
    "MED",
    "COMMUNITIES",
    "USED",
];

fn header(table: RibTable) -> &'static [&'static str] {
    match table {
        RibTable::Received => &COLUMNS,
        RibTable::Advertised => &COLUMNS[..7],
        RibTable::Best => &COLUMNS[..3],
    }
}

fn row(route: &RibRoute, table: RibTable) -> Vec<String> {
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let hops: Vec<String> = route.next_hops.iter().map(ToString::to_string).collect();
    let mut row = vec![
        destination(route),
        if hops.is_empty() {
            "this node".to_owned()
        } else {
            hops.join(",")
        },
        route.peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string()),
    ];
    if let Some(path) = &route.path {
        row.extend([
            or_dash(path.as_path.clone()),
            number(path.local_pref),
            number(path.med),
            or_dash(path.communities.join(",")),
        ]);
    }
    if table == RibTable::Received {
        row.push(match (&route.rejected, route.used) {
            (Some(why), _) => format!("no: {}", printable(why)),
            (None, Some(true)) => "yes".to_owned(),
            (None, _) => "no: another path is better (`culvert route explain` says why)".to_owned(),
        });
    }
    row
}

/// With ADD-PATH one destination has several paths, told apart by their identifiers.
fn destination(route: &RibRoute) -> String {
    match &route.path {
        Some(path) if path.id != 0 => format!("{} path {}", route.prefix, path.id),
        _ => route.prefix.to_string(),
    }
}
