//! The graph in other forms than JSON: text for people, and DOT for Graphviz.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::nodes::NodeKind;
use super::page::{GraphPage, LatencyMs, ShownUnusual, Unused};

/// For people, in columns.
pub fn text(page: &GraphPage) -> String {
    let mut text = String::new();
    unusual(page, &mut text);
    for cycle in &page.cycles {
        let closed = cycle.closed_by.as_ref().map_or_else(String::new, |by| {
            let routes: Vec<&str> = by.routes.iter().map(String::as_str).collect();
            let routes = if routes.is_empty() {
                String::new()
            } else {
                format!(" by route {}", routes.join(", "))
            };
            format!(", closed {} by {} calling {}{routes}", by.first_seen, by.from, by.service)
        });
        // Writing to a string does not fail, here and below.
        let _ = writeln!(text, "cycle: {}{closed}", cycle.path.join(" -> "));
    }
    let mut rows = vec![
        ["FROM", "SERVICE", "PER SECOND", "SUCCESS", "P50", "P95", "P99", "MTLS"]
            .map(str::to_owned),
    ];
    for edge in &page.edges {
        let of = |latency: fn(&LatencyMs) -> f64| {
            edge.latency_ms.as_ref().map_or_else(none, |all| format!("{} ms", latency(all)))
        };
        rows.push([
            edge.from.clone(),
            edge.service.clone(),
            format!("{:.1}", edge.requests_per_second),
            edge.success_rate.map_or_else(none, percent),
            of(|all| all.p50),
            of(|all| all.p95),
            of(|all| all.p99),
            edge.mtls.as_str().to_owned(),
        ]);
        for why in &edge.reasons {
            let mut row: [String; 8] = std::array::from_fn(|_| String::new());
            row[1] = format!("  {} ({})", why.reason, why.by);
            row[2] = format!("{:.1}", why.per_second);
            rows.push(row);
        }
    }
    table(&rows, &mut text);
    for one in &page.unused {
        let Unused { policy, rule, from, to } = one;
        let _ = writeln!(
            text,
            "unused: AccessPolicy {policy}, rule {rule}: {from} has not called {to}"
        );
    }
    text
}

fn unusual(page: &GraphPage, text: &mut String) {
    for one in &page.unusual {
        let what = match one.symptom {
            "failures" => format!("{} fail, usually {}", percent(one.now), percent(one.usual)),
            "latency" => format!("95th percentile {} s, usually {} s", one.now, one.usual),
            _ => format!("{} requests a second, usually {}", one.now, one.usual),
        };
        let culprit = if one.culprit { "culprit" } else { "follows" };
        let ShownUnusual { from, service, symptom, since, .. } = one;
        let _ = writeln!(text, "{culprit}: {from} -> {service}: {symptom} since {since}: {what}");
    }
}

fn none() -> String {
    "-".to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn table<const N: usize>(rows: &[[String; N]], text: &mut String) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or_default());
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// For Graphviz: `dot -Tsvg`.
pub fn dot(page: &GraphPage) -> String {
    let mut text = String::from("digraph mesh {\n  rankdir=LR\n  node [shape=box]\n");
    let in_cycle: BTreeSet<(&str, &str)> = page
        .cycles
        .iter()
        .flat_map(|cycle| cycle.path.windows(2).map(|step| (&*step[0], &*step[1])))
        .collect();
    let unusual: BTreeSet<(&str, &str)> =
        page.unusual.iter().map(|one| (&*one.from, &*one.service)).collect();
    for node in &page.nodes {
        let shape = match node.kind {
            NodeKind::App => "box",
            NodeKind::Service => "ellipse",
            NodeKind::External | NodeKind::Unknown => "plaintext",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {} [shape={shape}]", quoted(&node.id));
        for app in &node.served_by {
            let _ = writeln!(text, "  {} -> {} [style=dashed]", quoted(&node.id), quoted(app));
        }
    }
    for edge in &page.edges {
        let mut label = format!("{}/s", edge.requests_per_second);
        if let Some(rate) = edge.success_rate {
            let _ = write!(label, "\\n{:.2} %", rate * 100.0);
        }
        if let Some(latency) = &edge.latency_ms {
            let _ = write!(label, "\\np95 {} ms", latency.p95);
        }
        let mut style = String::new();
        if unusual.contains(&(&*edge.from, &*edge.service)) {
            style.push_str(" color=red fontcolor=red");
        }
        if in_cycle.contains(&(&*edge.from, &*edge.to)) {
            style.push_str(" style=bold");
        }
        let (from, to) = (quoted(&edge.from), quoted(&edge.to));
        let _ = writeln!(text, "  {from} -> {to} [label=\"{label}\"{style}]");
    }
    text.push_str("}\n");
    text
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
