//! Names outside the mesh: every address of one counts.

use std::time::{Duration, Instant};

use outrigger_tests::app::Echo;
use outrigger_tests::client::Curl;
use outrigger_tests::process::{ControlPlane, Proxy};
use outrigger_tests::skip;

#[test]
fn of_a_name_with_several_addresses_one_that_answers_is_used() {
    if !rustix::process::geteuid().is_root() {
        let test = "of_a_name_with_several_addresses_one_that_answers_is_used";
        return skip(test, "an /etc/hosts of its own takes root");
    }
    let app = Echo::start("app");
    let plane = ControlPlane::start(&[]);
    // Nothing listens on the first ones, and nobody answers for the one reserved for documentation.
    let hosts = "127.0.0.1 localhost\n::1 dual.test\n127.0.0.2 dual.test\n127.0.0.1 dual.test\n\
        192.0.2.1 silent.test\n127.0.0.1 silent.test\n";
    let caller = Proxy::start_with_hosts(&plane, "caller", hosts);
    for name in ["dual.test", "silent.test", "dual.test", "localhost"] {
        let began = Instant::now();
        let answer = Curl::through(&caller).get(&format!("http://{name}:{}/", app.port));
        assert!(answer.status == 200 && answer.head.contains("x-app: app"), "{name}: {answer:?}");
        assert!(began.elapsed() < Duration::from_secs(2), "{name}: {:?}", began.elapsed());
    }
}
