//! The coordinator as its clients and nodes see it: the real actors, the real API over an in-process channel, a real
//! SQLite ledger (PostgreSQL where there are several), and nodes that are scripted. Real nodes come in the end-to-end tests.

mod agent;
mod fixture;

mod failure;
mod leaving;
mod nodes;
mod operator;
mod port;
mod restart;
mod runs;
mod standby;
