//! A small bank whose services call each other: something for a mesh to carry.
//!
//! One binary, one role per process. The services know nothing of a mesh; they use a forward proxy
//! where `HTTP_PROXY` names one, as most programs do. `examples/simplebank/README.md` draws who
//! calls whom and lists every flag. Start at [`roles`]; [`control`] holds what can be changed and
//! counted at run time, [`call`] how one service reaches another, [`load`] the load generator.

mod call;
mod calls;
mod context;
mod control;
mod load;
mod options;
mod roles;
mod server;
mod spans;

use std::process::ExitCode;

use clap::Parser;

use crate::options::{Options, Role};

#[expect(unreachable_pub, reason = "generated code is not held to our rules")]
mod generated {
    include!("generated/simplebank.v1.rs");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    if options.exit_with_parent
        && let Err(error) =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
    {
        return failed(&format!("could not ask for a signal at the parent's death: {error}"));
    }
    let result = match options.role {
        Role::Load(load) => load::run(load).await,
        Role::Calls(options) => calls::run(options).await,
        role => roles::run(role).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(message: &str) -> ExitCode {
    eprintln!("simplebank: {message}");
    ExitCode::FAILURE
}
