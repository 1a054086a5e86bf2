//! What attackers try, from each seat of docs/threat-model.md, and what random ones would.

mod app;
mod bed;
mod compromised_app;
mod generated;
mod identity;
mod outside;
mod requests;
