//! Builds again when a migration is added: the compiler only notices changes of files that were there before.
#![allow(clippy::print_stdout)] // The way a build script speaks to cargo.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
