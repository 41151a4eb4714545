//! What the end-to-end tests stand on: real servers of their own, processes of the binary, and the flights oracle.

pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod figures;
pub(crate) mod files;
pub(crate) mod flights;
pub(crate) mod numbers;
pub(crate) mod otlp;
pub(crate) mod peer;
pub(crate) mod process;

pub(crate) use haulage_test_support::{mariadb, postgres, proxy, s3};
