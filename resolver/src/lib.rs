//! The addresses of names, asked for once at a time.
//!
//! Answers are kept as long as they say, and that there is none is kept for a moment, so that a burst of
//! calls to a name is one question and a name that nobody has is not asked for with every call. Nothing
//! here blocks a thread: the system's own `getaddrinfo` takes one for each name that does not answer.
//!
//! What `/etc/resolv.conf` and `/etc/hosts` say is followed while the process runs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Names whose answers are kept.
const MAX_NAMES: usize = 1_024;
/// Names asked for at one time; further ones are refused, so that a resolver that has stopped holds no
/// more than this.
const MAX_AT_A_TIME: usize = 64;
/// After this there is no answer; clients of the name have given up by then.
const LIMIT: Duration = Duration::from_secs(10);
/// Bounds of how long an answer is kept, whatever it says: a burst is one question, and what `/etc/hosts`
/// says, which has no time, is read again.
const KEPT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How long it is kept that a name has no address, or that nobody answered.
const NEGATIVE: Duration = Duration::from_secs(3);
/// Addresses of one name that are kept.
const MAX_ADDRESSES: usize = 64;

/// The addresses of a name in the order in which they should be tried (RFC 8305 section 4), at least one;
/// or why there is none.
pub type Answer = Result<Arc<[IpAddr]>, Arc<str>>;

/// What is known of names. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Resolver(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    names: Mutex<HashMap<Box<str>, Name>>,
    /// Where questions are asked: answers may come to any runtime, sockets belong to one.
    runtime: OnceLock<Handle>,
    system: Mutex<Option<System>>,
}

#[derive(Debug)]
enum Name {
    Asked(watch::Receiver<Option<Answer>>),
    Known { answer: Answer, until: Instant },
}

/// A resolver, and when the files that it was made from were changed.
#[derive(Clone)]
struct System {
    resolver: Arc<TokioResolver>,
    files: [Option<SystemTime>; 2],
}

impl Resolver {
    /// Asks on `runtime` from now on, anyone who wants to know. Without this, the first caller's is used.
    pub fn ask_on(&self, runtime: Handle) {
        // Anyone who was first stays.
        let _ = self.0.runtime.set(runtime);
    }

    /// The addresses of `host`. Waits at most some 10 s.
    pub async fn addresses(&self, host: &str) -> Answer {
        if let Ok(address) = host.parse() {
            return Ok(Arc::from([address]));
        }
        let mut asked = match self.known(host) {
            Ok(answer) => return answer,
            Err(asked) => asked,
        };
        match asked.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(answer)) => answer.clone(),
            Ok(None) | Err(_) => Err(Arc::from("the question was given up")),
        }
    }

    /// What is known, or else the question that is under way, begun where there is none.
    fn known(&self, host: &str) -> Result<Answer, watch::Receiver<Option<Answer>>> {
        let now = Instant::now();
        let mut names = self.0.lock();
        match names.get(host) {
            Some(Name::Known { answer, until }) if now < *until => return Ok(answer.clone()),
            // Its sender goes when the runtime that asks has ended.
            Some(Name::Asked(asked)) if asked.has_changed().is_ok() => return Err(asked.clone()),
            _ => {}
        }
        let under_way = |name: &&Name| matches!(name, Name::Asked(_));
        if names.values().filter(under_way).count() >= MAX_AT_A_TIME {
            return Ok(Err(Arc::from("too many names are being looked up")));
        }
        if names.len() >= MAX_NAMES {
            make_room(&mut names, now);
        }
        let (tell, asked) = watch::channel(None);
        names.insert(host.into(), Name::Asked(asked.clone()));
        drop(names);
        let (shared, host) = (Arc::clone(&self.0), host.to_owned());
        let runtime = self.0.runtime.get_or_init(Handle::current);
        runtime.spawn(async move {
            let (answer, keep) = shared.ask(&host).await;
            let until = Instant::now() + keep;
            let known = Name::Known { answer: answer.clone(), until };
            shared.lock().insert(host.into(), known);
            tell.send_replace(Some(answer));
        });
        Err(asked)
    }
}

impl Shared {
    /// The answer, and for how long it is one.
    async fn ask(&self, host: &str) -> (Answer, Duration) {
        let asking = async {
            let system = self.system().await?;
            let found = system.resolver.lookup_ip(host).await.map_err(|e| e.to_string())?;
            let addresses: Vec<IpAddr> =
                found.iter().map(|ip| ip.to_canonical()).take(MAX_ADDRESSES).collect();
            if addresses.is_empty() {
                return Err("it has no address".to_owned());
            }
            let left = found.valid_until().saturating_duration_since(Instant::now());
            Ok((in_turn(addresses), left))
        };
        let asked = tokio::time::timeout(LIMIT, asking).await;
        match asked.unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}"))) {
            Ok((addresses, left)) => (Ok(addresses.into()), left.clamp(KEPT.0, KEPT.1)),
            Err(why) => (Err(why.into()), NEGATIVE),
        }
    }

    /// The resolver as the system's files want it now.
    async fn system(&self) -> Result<System, String> {
        let before = self.system.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Files are read where nobody waits for their disk.
        let made = tokio::task::spawn_blocking(|| {
            let files = ["/etc/resolv.conf", "/etc/hosts"].map(changed);
            match before {
                Some(system) if system.files == files => Ok(system),
                _ => make().map(|resolver| System { resolver: Arc::new(resolver), files }),
            }
        });
        let system = made.await.map_err(|error| error.to_string())??;
        *self.system.lock().unwrap_or_else(PoisonError::into_inner) = Some(system.clone());
        Ok(system)
    }

    /// A poisoned lock means that a thread panicked; names are put in whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn changed(path: &str) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|file| file.modified()).ok()
}

fn make() -> Result<TokioResolver, String> {
    // Without a server of its own a host asks itself (resolv.conf(5)); /etc/hosts holds all the same.
    let (config, mut options) = read_system_conf().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read /etc/resolv.conf, asking 127.0.0.1");
        let local = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
        (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
    });
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Always;
    // Answers are kept here.
    options.cache_size = 0;
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.with_options(options).build().map_err(|error| error.to_string())
}

/// IPv6 first, then the families in turn (RFC 8305 section 4), each in the order in which it came.
fn in_turn(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let mut all: Vec<IpAddr> = Vec::with_capacity(six.len() + four.len());
    for at in 0..six.len().max(four.len()) {
        all.extend(six.get(at));
        all.extend(four.get(at));
    }
    let mut seen = Vec::with_capacity(all.len());
    all.retain(|address| {
        let new = !seen.contains(address);
        seen.push(*address);
        new
    });
    all
}

/// Drops what is over, and if that is nothing, what is over first.
fn make_room(names: &mut HashMap<Box<str>, Name>, now: Instant) {
    names.retain(|_, name| {
        matches!(name, Name::Known { until, .. } if now < *until) || matches!(name, Name::Asked(_))
    });
    if names.len() < MAX_NAMES {
        return;
    }
    let until = |name: &Name| match name {
        Name::Known { until, .. } => Some(*until),
        Name::Asked(_) => None,
    };
    let first = names.iter().filter_map(|(host, name)| Some((until(name)?, host.clone()))).min();
    if let Some((_, host)) = first {
        names.remove(&host);
    }
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "System({:?})", self.files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_are_tried_in_turn_and_each_address_once() {
        let addresses = ["1.1.1.1", "1.1.1.2", "::1", "1.1.1.1", "::2", "1.1.1.3"].map(ip);
        let want = ["::1", "1.1.1.1", "::2", "1.1.1.2", "1.1.1.3"].map(ip);
        assert_eq!(in_turn(addresses.to_vec()), want);
    }

    #[tokio::test]
    async fn an_address_is_its_own_answer_and_what_is_known_is_not_asked_again() {
        let resolver = Resolver::default();
        assert_eq!(resolver.addresses("::1").await.unwrap()[..], [ip("::1")]);
        let until = Instant::now() + Duration::from_secs(60);
        let known = Name::Known { answer: Err(Arc::from("nobody has it")), until };
        resolver.0.lock().insert("a.example".into(), known);
        assert_eq!(resolver.addresses("a.example").await, Err(Arc::from("nobody has it")));
        assert!(resolver.0.runtime.get().is_none(), "nobody was asked");
    }

    #[tokio::test]
    async fn a_burst_is_one_question() {
        let resolver = Resolver::default();
        let (tell, asked) = watch::channel(None);
        resolver.0.lock().insert("a.example".into(), Name::Asked(asked));
        let burst: Vec<_> = (0..100)
            .map(|_| {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.addresses("a.example").await })
            })
            .collect();
        tokio::task::yield_now().await;
        tell.send_replace(Some(Ok(Arc::from([ip("1.1.1.1")]))));
        for one in burst {
            assert_eq!(one.await.unwrap().unwrap()[..], [ip("1.1.1.1")]);
        }
        assert!(resolver.0.runtime.get().is_none(), "nobody was asked");
    }

    #[tokio::test]
    async fn questions_and_answers_are_bounded() {
        let resolver = Resolver::default();
        let mut senders = Vec::new();
        for n in 0..MAX_AT_A_TIME {
            let (tell, asked) = watch::channel(None);
            senders.push(tell);
            resolver.0.lock().insert(format!("asked-{n}").into(), Name::Asked(asked));
        }
        assert!(resolver.addresses("one-more.example").await.is_err());
        let now = Instant::now();
        let mut names = HashMap::new();
        for n in 0..MAX_NAMES {
            let until = now + Duration::from_secs(n as u64 + 1);
            let known = Name::Known { answer: Err(Arc::from("")), until };
            names.insert(format!("h{n}").into(), known);
        }
        make_room(&mut names, now);
        assert!(names.len() < MAX_NAMES && !names.contains_key("h0"));
    }
}
