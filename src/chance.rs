//! The one source of randomness of the command line: secrets that nobody has to remember.

/// A fresh secret of 128 bits, in hex.
#[expect(
    clippy::disallowed_methods,
    reason = "the one adapter: a secret must not be replayable"
)]
pub(crate) fn secret() -> String {
    format!("{:032x}", rand::random::<u128>())
}
