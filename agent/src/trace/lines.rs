//! A trace as a table for people.

use std::fmt::Write as _;

use super::{End, Hop, Place, Trace};
use crate::dataplane::probe::Kind;
use crate::table::{plain, printable};

impl Trace {
    /// The places on the way, what was expected and seen there, and what is wrong, if anything.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "From {} to {} and back",
            described(&self.from),
            described(&self.to)
        );
        let way = match (self.tunnelled, self.from.node == self.to.node) {
            (_, true) => "on one node".to_owned(),
            (true, false) => format!(
                "through the tunnel: {} > {}",
                self.from.node_address, self.to.node_address
            ),
            (false, false) => "between the nodes without a tunnel".to_owned(),
        };
        let sent = &self.sent;
        let _ = writeln!(
            text,
            "Sent {} packets of {} bytes and {} of {} bytes, {way}\n",
            sent.count, sent.small, sent.count, sent.large
        );
        // What did not come to one place cannot be expected at the next.
        let mut expected = (sent.count, sent.count);
        let own = self.own.iter().map(|hop| self.own_row(hop));
        let rows = self.hops.iter().map(|hop| {
            let row = self.row(hop, expected);
            expected = (hop.small.min(sent.count), hop.large.min(sent.count));
            row
        });
        let rows: Vec<Vec<String>> = own.chain(rows).collect();
        let header = ["WAY", "NODE", "LINK", "PLACE", "EXPECTED", "SEEN", "OUTER", ""];
        text += &plain(&header, &rows);
        if let Some(reason) = &self.unasked {
            let _ = writeln!(
                text,
                "\nOf {} nothing is known: {}",
                printable(&self.to.node),
                printable(reason)
            );
        }
        text.push('\n');
        if self.own.as_ref().is_some_and(|own| own.small == 0) {
            let _ = writeln!(
                text,
                "Whether packets of {} itself come out of its link is not known: it does not answer pings of its own node",
                self.from.address
            );
        }
        self.conclude(&mut text);
        text
    }

    /// What became of them in all.
    fn conclude(&self, text: &mut String) {
        match (&self.loss, &self.silence) {
            (None, None) => *text += "All packets arrived, and all answers came back.\n",
            (None, Some(silence)) => {
                let _ = writeln!(
                    text,
                    "The way there is well, of the way back nothing is known: {}",
                    printable(&silence.finding)
                );
                let _ = writeln!(text, "  more   {}", printable(&silence.cure));
            }
            (Some(loss), _) => {
                let _ = writeln!(text, "Lost {}", printable(&loss.place));
                let _ = writeln!(text, "  cause  {}", printable(&loss.cause));
                let _ = writeln!(text, "  mend   {}", printable(&loss.cure));
            }
        }
    }

    /// What the first pod itself sends, which nobody else has sent in its place.
    fn own_row(&self, own: &Hop) -> Vec<String> {
        let sent = self.sent.count;
        let mut row = self.row(own, (sent, sent));
        if own.small == 0
            && let Some(remark) = row.last_mut()
        {
            "no answer".clone_into(remark);
        }
        row
    }

    fn row(&self, hop: &Hop, expected: (u32, u32)) -> Vec<String> {
        let is_silent = self.silence.is_some() && hop.kind == Kind::Answer;
        let remark = match expected {
            (0, 0) => "-",
            _ if is_silent && hop.place == Place::FromPod => "no answer",
            (small, large) if hop.small < small || hop.large < large => "MISSING",
            _ => "ok",
        };
        let outer = hop
            .outer
            .map_or_else(|| "-".to_owned(), |(from, to)| format!("{from} > {to}"));
        vec![
            match hop.kind {
                Kind::Request => "there".to_owned(),
                Kind::Answer => "back".to_owned(),
            },
            printable(&hop.node),
            printable(&hop.link),
            hop.place.words().to_owned(),
            format!("{} + {}", expected.0, expected.1),
            format!("{} + {}", hop.small, hop.large),
            outer,
            remark.to_owned(),
        ]
    }
}

impl Place {
    fn words(self) -> &'static str {
        match self {
            Place::FromPod => "from the pod",
            Place::IntoTunnel => "into the tunnel",
            Place::OutOfNic => "out of the NIC",
            Place::IntoNic => "into the NIC",
            Place::OutOfTunnel => "out of the tunnel",
            Place::ToPod => "to the pod",
        }
    }
}

fn described(end: &End) -> String {
    let what = if end.is_node { "the node itself, " } else { "" };
    format!(
        "{} ({what}{}, {})",
        end.address,
        printable(&end.node),
        end.node_address
    )
}
