//! Who may call a port: its rules and tokens, compiled.

use std::net::IpAddr;
use std::sync::Arc;

use outrigger_core::error::FieldError;
use outrigger_core::policy::access::{Access, Action, CompiledAccess, Facts};

use crate::policy::tokens::Tokens;
use crate::tls::caller::MeshCaller;

/// What decides who may call a port.
#[derive(Debug)]
pub struct PortRules {
    pub(crate) access: CompiledAccess,
    pub(crate) tokens: Tokens,
}

impl PortRules {
    pub fn new(config: &Access) -> Result<Self, FieldError> {
        let access = CompiledAccess::new(config)?;
        Ok(Self { access, tokens: Tokens::new(&config.tokens)? })
    }

    /// Rules under which nobody may do anything.
    pub fn nobody() -> Arc<Self> {
        let config = Access { default: Action::Deny, ..Access::default() };
        Arc::new(Self {
            access: CompiledAccess::new(&config).expect("invariant: no rule can be wrong"),
            tokens: Tokens::default(),
        })
    }

    /// Whether some request of this caller could be allowed.
    pub fn could_allow(&self, caller: Option<&MeshCaller>, address: IpAddr) -> bool {
        self.access.could_allow(&facts(caller, address))
    }

    pub fn would_allow_stream(&self, caller: Option<&MeshCaller>, address: IpAddr) -> bool {
        !self.tokens.required() && self.access.decide(&facts(caller, address)).denied.is_none()
    }
}

pub(crate) fn facts(caller: Option<&MeshCaller>, address: IpAddr) -> Facts<'_> {
    Facts { identity: caller.map(|caller| &caller.proof.id), address, request: None }
}
