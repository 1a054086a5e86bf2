//! What a person sees: a table that updates in place on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::edges::Row;

/// How often a plain log says how the load is doing.
const PLAIN_PAUSE: Duration = Duration::from_secs(5);
/// So that a table on a small terminal does not scroll away.
const WIDTH: usize = 78;

#[derive(Debug)]
pub(crate) struct Screen {
    out: io::Stdout,
    terminal: bool,
    /// Lines of the table that is on the terminal now.
    drawn: usize,
    spoke: Option<Instant>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let out = io::stdout();
        Self { terminal: out.is_terminal(), out, drawn: 0, spoke: None }
    }

    /// A line that stays.
    pub(crate) fn say(&mut self, line: &str) {
        self.erase();
        self.write(&format!("{line}\n"));
    }

    /// The state of things, replaced by the next. Elsewhere than on a terminal only the headline,
    /// and not every time.
    pub(crate) fn show(&mut self, headline: &str, rows: &[Row]) {
        if self.terminal {
            self.erase();
            let mut lines = vec![String::new(), headline.to_owned()];
            lines.extend(table(rows));
            self.drawn = lines.len();
            let text: String = lines.iter().map(|line| format!("{}\n", cut(line))).collect();
            self.write(&text);
        } else if self.spoke.is_none_or(|spoke| spoke.elapsed() >= PLAIN_PAUSE) {
            self.spoke = Some(Instant::now());
            self.write(&format!("{headline}\n"));
        }
    }

    /// Lines of the table that stay, for a log.
    pub(crate) fn keep(&mut self, rows: &[Row]) {
        if !self.terminal {
            for line in table(rows) {
                self.write(&format!("  {line}\n"));
            }
        }
    }

    /// Leaves the table where it is: what follows comes below it.
    pub(crate) fn freeze(&mut self) {
        self.drawn = 0;
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            // Up to the first line of the table, and clear from there.
            let up = format!("\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
            self.write(&up);
        }
    }

    fn write(&mut self, text: &str) {
        // Nobody reads any more: the demo goes on, its exit code still tells.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

fn table(rows: &[Row]) -> Vec<String> {
    let head = line("CALLER", "CALLEE", "PROTO", "REQ/S", "SUCCESS", "P50 MS", "P99 MS");
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    let rows = rows.iter().map(|row| {
        line(
            &row.caller,
            &row.callee,
            &row.protocol,
            &format!("{:.1}", row.per_second),
            &format!("{:.2} %", row.success * 100.0),
            &ms(row.p50_ms),
            &ms(row.p99_ms),
        )
    });
    std::iter::once(head).chain(rows).collect()
}

fn line(
    caller: &str,
    callee: &str,
    protocol: &str,
    rate: &str,
    success: &str,
    p50: &str,
    p99: &str,
) -> String {
    let text =
        format!("{caller:<20} {callee:<20} {protocol:<6} {rate:>6} {success:>8} {p50:>6} {p99:>6}");
    text.trim_end().to_owned()
}

fn cut(line: &str) -> String {
    line.chars().take(WIDTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_line_up_and_fit() {
        let row = Row {
            caller: "account-transactions".to_owned(),
            callee: "ledger".to_owned(),
            protocol: "tcp".to_owned(),
            per_second: 12.04,
            success: 1.0,
            p50_ms: Some(1.25),
            p99_ms: None,
        };
        let lines = table(&[row]);
        assert_eq!(
            lines,
            [
                "CALLER               CALLEE               PROTO   REQ/S  SUCCESS P50 MS P99 MS",
                "account-transactions ledger               tcp      12.0 100.00 %    1.2      -",
            ]
        );
    }
}
