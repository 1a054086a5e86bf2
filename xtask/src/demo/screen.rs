//! What a person sees: a table that updates in place on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::edges::Row;

/// How often a plain log says how the load is doing.
const PLAIN_PAUSE: Duration = Duration::from_secs(5);
/// Columns and rows of a terminal that does not say.
const USUAL: (usize, usize) = (80, 24);

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
            // Before each drawing: the window may have another size by now.
            let size = self.size();
            self.erase();
            let mut lines = vec![String::new(), headline.to_owned()];
            lines.extend(table(rows));
            let lines = fit(lines, size);
            self.drawn = lines.len();
            self.write(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
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

    fn size(&self) -> (usize, usize) {
        let size = rustix::termios::tcgetwinsize(&self.out);
        let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        size.ok().filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or(USUAL)
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

/// Lines that stand on a screen of so many columns and rows as they are: none wraps, and none has scrolled away
/// when the next table takes the place of this one.
fn fit(mut lines: Vec<String>, (columns, rows): (usize, usize)) -> Vec<String> {
    // The cursor stands on a row of its own below.
    let room = rows.saturating_sub(1).max(1);
    if lines.len() > room {
        let hidden = lines.len() - room + 1;
        lines.truncate(room - 1);
        lines.push(format!("... {hidden} more lines: make the window higher"));
    }
    lines.iter().map(|line| line.chars().take(columns).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_any_window() {
        let lines: Vec<String> = (0..30).map(|n| format!("{n} {}", "x".repeat(90))).collect();
        for (columns, rows) in [(80, 24), (100, 50), (20, 5), (1, 1)] {
            let fitted = fit(lines.clone(), (columns, rows));
            assert!(fitted.len() < rows.max(2), "{columns}x{rows}: {}", fitted.len());
            assert!(fitted.iter().all(|line| line.chars().count() <= columns), "{columns}");
        }
        assert_eq!(fit(lines.clone(), (100, 50)), lines);
        assert!(fit(lines, (80, 24))[22].starts_with("... 8 more lines"));
    }

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
