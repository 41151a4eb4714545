//! End to end: every test drives the real binary, against real servers that it starts itself.
//!
//! One binary of modules, because linking this much takes longer than running it. What is deliberately not here: tests
//! of single parts, which stand beside them.

mod bad_input;
mod bad_rows;
mod chaos;
mod check_values;
mod checks;
mod cluster;
mod databases;
mod datasets;
mod drift;
mod embedded;
mod failover;
mod faults;
mod foreign;
mod foreign_types;
mod formats;
mod full_disk;
mod globs;
mod heartbeats;
mod house;
mod increments;
mod infer;
mod lake;
mod lake_evolve;
mod lake_readers;
mod lake_receipts;
mod lake_watermarks;
mod leaving;
mod moments;
mod mysql;
mod nested;
mod newest;
mod nothing_new;
mod origins;
mod partitions;
mod poison;
mod readers;
mod receipts;
mod replay;
mod replay_cluster;
mod rest;
mod restaged;
mod retention;
mod revert;
mod saga;
mod set_aside;
mod shop;
mod strangers;
mod support;
mod targets;
mod trace;
mod undo;
mod validate;
mod watermarks;
