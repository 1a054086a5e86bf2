//! Whether the mesh takes this workload, and whether its app is there.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};

/// What the control plane thinks of this workload, and what the app's ports say.
#[derive(Debug, Default)]
pub struct RegistrationState {
    /// Why it refuses it; none while it does not.
    pub(crate) refused: ArcSwapOption<String>,
    /// Under which name it is registered now.
    pub(crate) registered: ArcSwapOption<String>,
    /// What the last look at the app's ports found; none before the first one.
    pub(crate) app: ArcSwapOption<AppState>,
    /// Why there is no registration; empty where there is one.
    pub(crate) why_none: ArcSwap<&'static str>,
}

/// Whether the app accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppState {
    /// Addresses on which it does not, and since when.
    pub closed: Vec<(SocketAddr, Instant)>,
    /// How many ports it has, `--app-port`.
    pub ports: usize,
}

impl RegistrationState {
    /// Why the proxy is not ready, if that is why.
    pub fn problem(&self) -> Option<String> {
        let refused = self.refused.load();
        let refused = refused.as_ref()?;
        Some(format!("the control plane refused this workload's registration: {refused}"))
    }

    /// Two lines for a person, whether it is registered and an endpoint.
    pub fn describe(&self, now: Instant) -> String {
        let why_none = **self.why_none.load();
        if !why_none.is_empty() {
            return format!("registered: no, {why_none}\n");
        }
        let mut text = match (&*self.registered.load(), &*self.refused.load()) {
            (Some(uid), _) => format!("registered: yes, as {uid}\n"),
            (None, Some(why)) => format!("registered: no, the control plane refused it: {why}\n"),
            (None, None) => "registered: no, the control plane has not answered yet\n".to_owned(),
        };
        let endpoint = match &*self.app.load() {
            None => "no, the app's ports have not been probed yet".to_owned(),
            Some(app) if app.closed.len() == app.ports => format!("no, {}", app.describe(now)),
            Some(app) if app.closed.is_empty() => "yes".to_owned(),
            Some(app) => format!("yes, on other ports; {}", app.describe(now)),
        };
        let _ = writeln!(text, "endpoint: {endpoint}");
        text
    }

    pub(crate) fn note_app(&self, app: AppState) {
        self.app.store(Some(Arc::new(app)));
    }
}

impl AppState {
    /// Where nothing listens, and since when.
    fn describe(&self, now: Instant) -> String {
        let each = self.closed.iter().map(|(address, since)| {
            let seconds = now.saturating_duration_since(*since).as_secs();
            format!("{address} (for {seconds} s)")
        });
        format!("the app accepts no connections at {}", each.collect::<Vec<_>>().join(", "))
    }

    /// Ports that have been closed for so long.
    pub(crate) fn closed_for(&self, long: Duration, now: Instant) -> Vec<SocketAddr> {
        let long_closed =
            self.closed.iter().filter(|(_, since)| now.saturating_duration_since(*since) >= long);
        long_closed.map(|(address, _)| *address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_whether_it_is_an_endpoint_and_since_when_it_is_not() {
        let state = RegistrationState::default();
        let now = Instant::now();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(
            state.describe(now),
            "registered: no, the control plane has not answered yet\n\
             endpoint: no, the app's ports have not been probed yet\n"
        );
        state.registered.store(Some(Arc::new("bank.a".to_owned())));
        state.note_app(AppState { closed: Vec::new(), ports: 2 });
        assert_eq!(state.describe(now), "registered: yes, as bank.a\nendpoint: yes\n");
        let closed = vec![(address(80), now)];
        state.note_app(AppState { closed: closed.clone(), ports: 2 });
        let later = now + Duration::from_secs(7);
        assert_eq!(
            state.describe(later),
            "registered: yes, as bank.a\nendpoint: yes, on other ports; the app accepts no \
             connections at 127.0.0.1:80 (for 7 s)\n"
        );
        state.note_app(AppState { closed, ports: 1 });
        assert!(state.describe(later).contains("endpoint: no, the app accepts no connections"));
        state.why_none.store(Arc::new("there is no --app-port"));
        assert_eq!(state.describe(now), "registered: no, there is no --app-port\n");
    }
}
