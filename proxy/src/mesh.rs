//! What the proxy and the control plane say to each other.

pub mod certify;
pub mod control_plane;
pub mod discovery;
pub mod refuse;
pub mod registration;
pub mod renew;
pub mod report;
pub mod state;
pub mod stop;
pub mod tap;
