//! Tables in the forms that operators of Calico know.

use std::io::IsTerminal as _;

use comfy_table::Table;

/// The box of calicoctl: `+-|`, a line below the header, none between rows. In the order of comfy-table's presets.
const CALICOCTL_BOX: &str = "||--+-++|    ++++++";

/// Blanks between two columns of a table without a box, as calicoctl and kubectl have them.
const GAP: usize = 3;

/// A table in calicoctl's box, without rows yet.
pub(crate) fn boxed(header: impl IntoIterator<Item = &'static str>) -> Table {
    let mut table = Table::new();
    table.load_preset(CALICOCTL_BOX);
    table.set_header(header);
    table
}

/// A table as `calicoctl get` prints it: no box, columns as wide as their widest cell.
pub(crate) fn plain(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: String = cells
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}", width = width + GAP))
            .collect();
        padded.trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut header.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Colours, where a person looks at a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    /// Text alone.
    Plain,
    /// The colours of the terminal (ECMA-48 §8.3.117).
    Coloured,
}

impl Paint {
    /// Coloured where standard output is a terminal and nobody has asked for no colours (<https://no-color.org>).
    pub(crate) fn of_stdout() -> Self {
        let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if std::io::stdout().is_terminal() && !is_unwanted {
            Self::Coloured
        } else {
            Self::Plain
        }
    }

    /// What somebody should look at.
    pub(crate) fn wrong(self, text: &str) -> String {
        self.coloured(31, text)
    }

    /// What is as it should be.
    pub(crate) fn well(self, text: &str) -> String {
        self.coloured(32, text)
    }

    fn coloured(self, colour: u8, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
        }
    }
}

/// What others wrote may hold anything: none of it may break the box or drive the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_without_a_box_stand_below_each_other() {
        let rows = [
            vec![
                "default-ipv4-ippool".to_owned(),
                "10.65.0.0/16".to_owned(),
                "all()".to_owned(),
            ],
            vec!["é".to_owned(), "10.66.0.0/16".to_owned(), String::new()],
        ];
        let expected = "\
NAME                  CIDR           SELECTOR
default-ipv4-ippool   10.65.0.0/16   all()
é                     10.66.0.0/16
";
        assert_eq!(plain(&["NAME", "CIDR", "SELECTOR"], &rows), expected);
    }

    #[test]
    fn what_drives_a_terminal_is_blanked() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
