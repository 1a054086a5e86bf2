//! From samples to ratios, verdicts, a table, JSON and a chart.

use std::fmt::Write;

use serde::Serialize;

use crate::case::{Case, Peer};
use crate::measure::Sample;

/// How hard the subject was driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Drive {
    Saturated,
    FixedRate,
}

/// One run of one subject.
pub struct Run {
    pub round: usize,
    pub case: Case,
    pub drive: Drive,
    pub peer: Peer,
    pub sample: Sample,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Cpu,
    P99,
}

/// A ratio that must hold.
pub struct Bound {
    case: Case,
    drive: Drive,
    figure: Figure,
    of: Peer,
    against: Peer,
    /// The other side's case, where that is another one.
    against_case: Case,
    at_most: f64,
    /// To be reached: the result of the bench does not depend on it yet.
    goal: bool,
}

const fn goal(case: Case, at_most: f64) -> Bound {
    Bound { goal: true, ..bound(case, Drive::Saturated, Figure::Cpu, Peer::Envoy, at_most) }
}

const fn bound(case: Case, drive: Drive, figure: Figure, against: Peer, at_most: f64) -> Bound {
    let of = Peer::Outrigger;
    Bound { case, drive, figure, of, against, against_case: case, at_most, goal: false }
}

const fn floor_bound(case: Case) -> Bound {
    Bound { of: Peer::Floor, ..bound(case, Drive::Saturated, Figure::Cpu, Peer::Haproxy, 1.15) }
}

/// The promises that the bench checks.
pub const BOUNDS: &[Bound] = &{
    use Case::{
        Grpc, H1, H1Mib, H2, Handshake, PairH1, Policies, Resumption, Tcp, TlsGrpc, TlsH1,
        TlsH1Kib64, TlsH1Mib, TlsH1Upload, TlsH2Kib64, TlsH2Mib, TlsH2Upload,
    };
    use Drive::{FixedRate, Saturated};
    use Figure::{Cpu, P99};
    use Peer::{Envoy, Floor, Outrigger};
    [
        floor_bound(H1),
        floor_bound(H2),
        floor_bound(Grpc),
        bound(H1, Saturated, Cpu, Floor, 1.5),
        bound(H2, Saturated, Cpu, Floor, 1.5),
        bound(Grpc, Saturated, Cpu, Floor, 1.5),
        bound(H1, FixedRate, Cpu, Floor, 1.4),
        bound(H2, FixedRate, Cpu, Floor, 1.4),
        bound(Grpc, FixedRate, Cpu, Floor, 1.4),
        bound(H1, Saturated, Cpu, Envoy, 0.60),
        bound(H2, Saturated, Cpu, Envoy, 0.75),
        bound(Grpc, Saturated, Cpu, Envoy, 0.50),
        bound(Tcp, Saturated, Cpu, Envoy, 0.90),
        bound(H1, FixedRate, Cpu, Envoy, 0.60),
        bound(H2, FixedRate, Cpu, Envoy, 0.80),
        bound(Grpc, FixedRate, Cpu, Envoy, 0.70),
        bound(H1, FixedRate, P99, Envoy, 0.50),
        bound(H2, FixedRate, P99, Envoy, 0.85),
        bound(Grpc, FixedRate, P99, Envoy, 0.85),
        bound(Tcp, FixedRate, P99, Envoy, 1.15),
        Bound { against_case: PairH1, ..bound(Policies, Saturated, Cpu, Outrigger, 1.15) },
        bound(TlsH1, Saturated, Cpu, Envoy, 0.55),
        bound(TlsGrpc, Saturated, Cpu, Envoy, 0.65),
        bound(TlsH1, FixedRate, Cpu, Envoy, 0.55),
        bound(TlsGrpc, FixedRate, Cpu, Envoy, 0.65),
        bound(TlsH1, FixedRate, P99, Envoy, 0.50),
        bound(TlsGrpc, FixedRate, P99, Envoy, 0.80),
        goal(H1Mib, 0.80),
        goal(TlsH1Kib64, 0.55),
        goal(TlsH1Mib, 0.75),
        goal(TlsH1Upload, 0.75),
        goal(TlsH2Kib64, 0.75),
        goal(TlsH2Mib, 0.85),
        goal(TlsH2Upload, 0.85),
        // At least 0.9 of the handshakes per second of a full processor.
        bound(Handshake, Saturated, Cpu, Envoy, 1.0 / 0.9),
        Bound { against_case: Handshake, ..bound(Resumption, Saturated, Cpu, Outrigger, 0.65) },
    ]
};

/// A bound with what was measured.
#[derive(Serialize)]
pub struct Verdict {
    pub line: String,
    pub at_most: f64,
    pub quartiles: [f64; 3],
    pub rounds: usize,
    pub holds: bool,
    pub goal: bool,
}

/// Every bound whose two sides were measured.
pub fn verdicts(runs: &[Run]) -> Vec<Verdict> {
    BOUNDS.iter().filter_map(|bound| verdict(bound, runs)).collect()
}

fn verdict(bound: &Bound, runs: &[Run]) -> Option<Verdict> {
    let value = |round: usize, case: Case, peer: Peer| {
        runs.iter()
            .find(|run| {
                run.round == round
                    && run.case == case
                    && run.drive == bound.drive
                    && run.peer == peer
            })
            .map(|run| figure(&run.sample, bound.figure))
    };
    let last = runs.iter().map(|run| run.round).max()?;
    let ratios: Vec<f64> = (0..=last)
        .filter_map(|round| {
            let against = value(round, bound.against_case, bound.against)?;
            Some(value(round, bound.case, bound.of)? / against)
        })
        .collect();
    let quartiles = quartiles(&ratios)?;
    let figure = match bound.figure {
        Figure::Cpu if bound.case.is_handshake() => "CPU each",
        Figure::Cpu => "CPU per request",
        Figure::P99 => "p99",
    };
    let drive = match bound.drive {
        Drive::Saturated => "saturated",
        Drive::FixedRate => "fixed rate",
    };
    let of = bound.of.name();
    let against = match bound.against_case {
        same if same == bound.case => bound.against.name(),
        other => other.name(),
    };
    Some(Verdict {
        line: format!("{} {drive}: {figure}, {of} / {against}", bound.case.name()),
        at_most: bound.at_most,
        quartiles,
        rounds: ratios.len(),
        holds: quartiles[1] <= bound.at_most,
        goal: bound.goal,
    })
}

fn figure(sample: &Sample, figure: Figure) -> f64 {
    match figure {
        Figure::Cpu => sample.cpu_us,
        Figure::P99 => sample.p99_us as f64,
    }
}

/// Lower quartile, median, upper quartile.
pub fn quartiles(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let position = share * (sorted.len() - 1) as f64;
        let (low, high) = (position.floor() as usize, position.ceil() as usize);
        let part = position - position.floor();
        sorted[low] * (1.0 - part) + sorted[high] * part
    };
    (!sorted.is_empty()).then(|| [at(0.25), at(0.5), at(0.75)])
}

/// Medians of every subject, case by case.
pub fn table(runs: &[Run]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<29} {:<11} {:<10} {:>9} {:>8} {:>6} {:>8} {:>8} {:>9}",
        "case", "drive", "proxy", "req/s", "CPU us", "busy", "p50 us", "p99 us", "p99.9 us"
    );
    for (case, drive, peer) in groups(runs) {
        let of = |value: &dyn Fn(&Sample) -> f64| {
            let values: Vec<f64> = runs
                .iter()
                .filter(|run| (run.case, run.drive, run.peer) == (case, drive, peer))
                .map(|run| value(&run.sample))
                .collect();
            quartiles(&values).map_or(0.0, |q| q[1])
        };
        let drive_name = match drive {
            Drive::Saturated => "saturated",
            Drive::FixedRate => "fixed rate",
        };
        let latency = |value: f64| match drive {
            Drive::Saturated => "-".to_owned(),
            Drive::FixedRate => format!("{value:.0}"),
        };
        let _ = writeln!(
            out,
            "{:<29} {:<11} {:<10} {:>9.0} {:>8.1} {:>5.0}% {:>8} {:>8} {:>9}",
            case.name(),
            drive_name,
            peer.name(),
            of(&|s| s.per_second),
            of(&|s| s.cpu_us),
            of(&|s| s.busy) * 100.0,
            latency(of(&|s| s.p50_us as f64)),
            latency(of(&|s| s.p99_us as f64)),
            latency(of(&|s| s.p999_us as f64)),
        );
    }
    out
}

fn groups(runs: &[Run]) -> Vec<(Case, Drive, Peer)> {
    let mut groups: Vec<_> = runs.iter().map(|run| (run.case, run.drive, run.peer)).collect();
    groups.sort();
    groups.dedup();
    groups
}

pub fn verdict_lines(verdicts: &[Verdict]) -> String {
    let mut out = String::new();
    for verdict in verdicts {
        let [low, median, high] = verdict.quartiles;
        let _ = writeln!(
            out,
            "{} {:<58} {median:.2} (quartiles {low:.2} to {high:.2}, {} rounds), at most {:.2}",
            match (verdict.holds, verdict.goal) {
                (true, _) => "holds",
                (false, true) => "goal ",
                (false, false) => "FAILS",
            },
            verdict.line,
            verdict.rounds,
            verdict.at_most,
        );
    }
    out
}

/// What each case costs now, as parts of what it costs with the other build.
pub fn before_lines(runs: &[Run]) -> String {
    let mut out = String::new();
    for (case, drive, _) in groups(runs).into_iter().filter(|group| group.2 == Peer::Before) {
        let bound = bound(case, drive, Figure::Cpu, Peer::Before, f64::INFINITY);
        let Some(Verdict { line, quartiles: [low, median, high], rounds, .. }) =
            verdict(&bound, runs)
        else {
            continue;
        };
        let _ = writeln!(
            out,
            "      {line:<58} {median:.2} (quartiles {low:.2} to {high:.2}, {rounds} rounds)"
        );
    }
    out
}

/// A bar chart of CPU per request: one group per case and drive, one bar per subject.
pub fn svg(runs: &[Run]) -> String {
    const BAR: usize = 16;
    const LEFT: usize = 230;
    const WIDTH: f64 = 520.0;
    let mut rows = Vec::new();
    for (case, drive, peer) in groups(runs) {
        let values: Vec<f64> = runs
            .iter()
            .filter(|run| (run.case, run.drive, run.peer) == (case, drive, peer))
            .map(|run| run.sample.cpu_us)
            .collect();
        if let Some([_, median, _]) = quartiles(&values) {
            rows.push((case, drive, peer, median));
        }
    }
    let most = rows.iter().map(|row| row.3).fold(1.0, f64::max);
    let height = rows.len() * BAR + 60;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<text x=\"10\" y=\"20\" font-size=\"14\">\
         CPU microseconds per request (median), one processor</text>\n"
    );
    for (i, (case, drive, peer, median)) in rows.iter().enumerate() {
        let y = 40 + i * BAR;
        let width = median / most * WIDTH;
        let colour = if *peer == Peer::Outrigger { "#c0392b" } else { "#7f8c8d" };
        let drive = if *drive == Drive::Saturated { "saturated" } else { "fixed rate" };
        let _ = writeln!(
            out,
            "<text x=\"10\" y=\"{ty}\">{} {drive}, {}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.0}\" height=\"{bar}\" fill=\"{colour}\"/>\
             <text x=\"{tx:.0}\" y=\"{ty}\">{median:.1}</text>",
            case.name(),
            peer.name(),
            ty = y + 11,
            bar = BAR - 3,
            tx = LEFT as f64 + width + 5.0,
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_those_of_the_values() {
        assert_eq!(quartiles(&[3.0, 1.0, 2.0]), Some([1.5, 2.0, 2.5]));
        assert_eq!(quartiles(&[]), None);
    }

    #[test]
    fn a_bound_is_judged_by_the_median_of_the_rounds() {
        let sample = |cpu_us| Sample {
            requests: 1,
            errors: 0,
            per_second: 1.0,
            cpu_us,
            busy: 1.0,
            p50_us: 0,
            p99_us: 0,
            p999_us: 0,
        };
        let run = |round, peer, cpu_us| Run {
            round,
            case: Case::H1,
            drive: Drive::Saturated,
            peer,
            sample: sample(cpu_us),
        };
        let mut runs = Vec::new();
        for (round, ratio) in [1.0, 1.4, 9.0].into_iter().enumerate() {
            runs.push(run(round, Peer::Floor, 10.0));
            runs.push(run(round, Peer::Outrigger, 10.0 * ratio));
        }
        let verdicts = verdicts(&runs);
        assert_eq!(verdicts.len(), 1);
        assert!(verdicts[0].holds && (verdicts[0].quartiles[1] - 1.4).abs() < 1e-9);
    }
}
