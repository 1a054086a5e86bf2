//! What is usual, in the store: a few documents, each of which holds whole edges.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use outrigger_core::graph::baseline::{Average, Baseline, Usual};
use serde::{Deserialize, Serialize};

use super::edges::{Edge, EdgeId, Edges, Words};
use crate::store::{self, Document, Store, StoreError};

/// Documents over which edges are spread.
const DOCUMENTS: usize = 8;
/// Bytes of one: a store in a cluster takes a million.
const MAX_BYTES: usize = 900_000;

#[derive(Debug, Default, Serialize, Deserialize)]
struct SavedEdges {
    since: u64,
    edges: Vec<SavedEdge>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedEdge {
    from: String,
    service: String,
    reporter: String,
    accounts: BTreeSet<String>,
    routes: BTreeSet<String>,
    protocols: BTreeSet<String>,
    first_seen: u64,
    last_seen: u64,
    lately: SavedUsual,
    hours: Vec<(u8, SavedUsual)>,
}

/// Ticks, then mean, variance and weight of rate, failures and 95th percentile.
type SavedUsual = (u32, [f32; 3], [f32; 3], [f32; 3]);

fn name(document: usize) -> Document {
    Document::secret(format!("graph-{document}.json"))
}

fn saved(usual: &Usual) -> SavedUsual {
    let average = |of: Average| [of.mean, of.variance, of.weight];
    (usual.ticks, average(usual.rate), average(usual.failures), average(usual.p95))
}

fn texts(words: &Words) -> BTreeSet<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn words(texts: &BTreeSet<String>) -> Words {
    texts.iter().map(|text| Arc::from(&**text)).collect()
}

/// Nothing that was read may be no number.
fn restored(&(ticks, rate, failures, p95): &SavedUsual) -> Usual {
    let average = |[mean, variance, weight]: [f32; 3]| {
        let is_sound =
            [mean, variance, weight].iter().all(|value| value.is_finite() && *value >= 0.0);
        if is_sound { Average { mean, variance, weight } } else { Average::default() }
    };
    Usual { ticks, rate: average(rate), failures: average(failures), p95: average(p95) }
}

/// What is to be written: first those edges that were used last, until a document is full.
pub fn documents(edges: &Edges) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = edges.iter().collect();
    all.sort_by_key(|(_, edge)| std::cmp::Reverse(edge.last_seen));
    let mut documents: Vec<Vec<u8>> = Vec::new();
    let mut open: Vec<u8> = Vec::new();
    let begin = format!("{{\"since\":{},\"edges\":[", edges.since).into_bytes();
    let mut left_out = 0;
    for (id, edge) in all {
        let Ok(text) = serde_json::to_vec(&save(id, edge)) else { continue };
        if open.len() + text.len() + 2 > MAX_BYTES && documents.len() < DOCUMENTS {
            documents.push(std::mem::take(&mut open));
        }
        if documents.len() == DOCUMENTS {
            left_out += 1;
            continue;
        }
        open.extend(if open.is_empty() { &begin[..] } else { b"," });
        open.extend(text);
    }
    if !open.is_empty() {
        documents.push(open);
    }
    documents.iter_mut().for_each(|document| document.extend(b"]}"));
    if left_out > 0 {
        tracing::warn!(
            left_out,
            "what is usual on some edges is not written down: there are too many"
        );
    }
    documents.resize(DOCUMENTS, b"{\"since\":0,\"edges\":[]}".to_vec());
    documents
}

fn save(id: &EdgeId, edge: &Edge) -> SavedEdge {
    let (lately, hours) = edge.baseline.known();
    SavedEdge {
        from: id.from.to_string(),
        service: id.service.to_string(),
        reporter: edge.reporter.to_string(),
        accounts: texts(&edge.accounts),
        routes: texts(&edge.routes),
        protocols: texts(&edge.protocols),
        first_seen: edge.first_seen,
        last_seen: edge.last_seen,
        lately: saved(&lately),
        hours: hours.iter().map(|(hour, usual)| (*hour, saved(usual))).collect(),
    }
}

/// Writes those that differ from what is there.
pub fn write(store: &dyn Store, documents: Vec<Vec<u8>>) -> Result<(), StoreError> {
    for (number, bytes) in documents.into_iter().enumerate() {
        store::update(store, &name(number), |there| {
            let is_new = there.is_none_or(|there| there != bytes);
            let is_nothing = there.is_none() && bytes.ends_with(b"[]}");
            (is_new && !is_nothing).then(|| bytes.clone())
        })?;
    }
    Ok(())
}

/// What is there; a damaged document is as good as none.
pub fn read(store: &dyn Store, now: u64) -> Edges {
    let (mut since, mut edges) = (now, Vec::new());
    for number in 0..DOCUMENTS {
        let document = name(number);
        let saved = store.read(&document).and_then(|stored| {
            let Some(stored) = stored else { return Ok(SavedEdges::default()) };
            serde_json::from_slice::<SavedEdges>(&stored.bytes).map_err(|error| StoreError::Io {
                place: store.place(&document),
                error: io::Error::other(error),
            })
        });
        match saved {
            Ok(saved) => {
                if !saved.edges.is_empty() {
                    since = since.min(saved.since);
                }
                edges.extend(saved.edges.into_iter().map(|saved| restore(saved, now)));
            }
            Err(error) => {
                tracing::error!(%error, "could not read what is usual in the mesh: it is learnt anew");
            }
        }
    }
    Edges::new(since, edges)
}

fn restore(saved: SavedEdge, now: u64) -> (EdgeId, Edge) {
    let hours = saved.hours.iter().map(|(hour, usual)| (*hour, restored(usual)));
    let edge = Edge {
        reporter: saved.reporter.into(),
        accounts: words(&saved.accounts),
        routes: words(&saved.routes),
        protocols: words(&saved.protocols),
        first_seen: saved.first_seen.min(now),
        last_seen: saved.last_seen.min(now),
        baseline: Baseline::new(restored(&saved.lately), hours),
        ..Edge::default()
    };
    (EdgeId { from: saved.from.into(), service: saved.service.into() }, edge)
}

#[cfg(test)]
mod tests {
    use outrigger_core::graph::baseline::Tick;

    use super::*;
    use crate::store::dir::Directory;

    fn edge(last_seen: u64) -> Edge {
        let mut edge = Edge { reporter: "bank/orders".into(), last_seen, ..Edge::default() };
        for hour in 0..168 {
            let tick = Tick {
                requests: 7 + u64::from(hour),
                failures: 1,
                reported: true,
                ..Tick::default()
            };
            edge.baseline.tick(hour, tick);
        }
        edge
    }

    fn id(number: usize) -> EdgeId {
        EdgeId { from: "bank/orders".into(), service: format!("bank/s{number}:80").into() }
    }

    #[test]
    fn what_is_usual_is_the_same_after_it_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::open(folder.path()).unwrap();
        let edges = Edges::new(5, [(id(1), edge(9))]);
        write(&store, documents(&edges)).unwrap();
        let read = read(&store, 10);
        let all = |edges: &Edges| -> Vec<_> {
            let known = |(usual, hours): (Usual, &[(u8, Usual)])| (usual, hours.to_vec());
            edges.iter().map(|(id, edge)| (id.clone(), known(edge.baseline.known()))).collect()
        };
        assert_eq!((read.since, all(&read)), (5, all(&edges)));
    }

    #[test]
    fn of_too_many_those_that_were_used_last_are_kept_and_a_damaged_document_costs_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::open(folder.path()).unwrap();
        let edges = Edges::new(5, (0..1_500).map(|number| (id(number), edge(number as u64))));
        let documents = documents(&edges);
        assert!(documents.iter().all(|document| document.len() <= MAX_BYTES + 2));
        write(&store, documents).unwrap();
        let kept = read(&store, 9_999);
        assert!((100..1_500).contains(&kept.count()), "{}", kept.count());
        assert!(kept.iter().any(|(kept, _)| *kept == id(1_499)));
        assert!(kept.iter().all(|(kept, _)| *kept != id(0)));
        store::update(&store, &name(1), |_| Some(b"{\"since\":".to_vec())).unwrap();
        let rest = read(&store, 9_999).count();
        assert!(rest > 0 && rest < kept.count(), "{rest}");
    }
}
