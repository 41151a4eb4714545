//! The decisions of Haulage, and nothing else.
//!
//! A run is an append-only log of [`event::Event`]s. [`run::decide`] turns a state and an input into new events,
//! [`run::State::apply`] folds an event into the state, and [`run::State::outstanding`] says which effects are still
//! owed. The live path and recovery are the same path: whoever holds the log can fold it and carry on.
//!
//! There is deliberately no clock, no randomness, no runtime, no database and no network here: time is an argument,
//! jitter is derived from ids, and everything can be checked by a table or a property over log prefixes.

pub mod checkpoint;
pub mod checksum;
pub mod event;
pub mod failure;
pub mod ids;
pub mod lease;
pub mod quarantine;
pub mod receipt;
pub mod run;
pub mod saga;
pub mod submission;
pub mod watermark;
pub mod words;
