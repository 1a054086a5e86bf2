//! What attackers try, from each seat of docs/threat-model.md, and what random ones would.

mod app;
mod bed;
mod compromised_app;
mod generated;
mod identity;
mod member;
mod outside;
mod peer;
mod requests;
mod tenant;
mod upstream;
