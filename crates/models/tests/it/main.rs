//! Architectures against the reference's logits and names, subgraphs, hooks, links, parameters.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod cache;
mod golden;
mod hooks;
mod links;
mod parameters;
mod subgraphs;
