//! What the case has measured: lines with their bounds, and how what is in them is spread.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::memory::Line;

/// Printed as it comes.
#[derive(Default, Serialize)]
pub struct Figures {
    pub lines: Vec<Line>,
    spreads: Vec<Spread>,
}

#[derive(Serialize)]
struct Spread {
    what: String,
    unit: &'static str,
    count: usize,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Figures {
    #[expect(clippy::print_stdout, reason = "the results are the output")]
    pub fn line(&mut self, line: Line) {
        println!("{line}");
        self.lines.push(line);
    }

    /// Values without a bound of their own.
    pub fn add(&mut self, what: &str, unit: &'static str, values: &[f64]) {
        let at = |share| quantile(values, share);
        let (p50, p99, max, count) = (at(0.5), at(0.99), at(1.0), values.len());
        self.spreads.push(Spread { what: what.to_owned(), unit, count, p50, p99, max });
    }

    pub fn table(&self) -> String {
        let mut out = String::new();
        let head = ["control plane", "unit", "count", "p50", "p99", "max"];
        let [what, unit, count, p50, p99, max] = head;
        let _ = writeln!(out, "{what:<48} {unit:<4} {count:>6} {p50:>9} {p99:>9} {max:>9}");
        for Spread { what, unit, count, p50, p99, max } in &self.spreads {
            let _ =
                writeln!(out, "{what:<48} {unit:<4} {count:>6} {p50:>9.1} {p99:>9.1} {max:>9.1}");
        }
        out
    }
}

/// The value that a share of all values does not exceed (nearest rank); 0 without values.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [100.0, 198.0, 200.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
