//! A real cluster, whose kubeconfig `OUTRIGGER_TEST_CLUSTER` names, with the mesh and our images in it as after
//! `cargo xtask cluster --keep`. Skipped elsewhere, and what needs two nodes or IPv6 where there is none.

mod bed;
mod families;
mod pods;
mod routes;
