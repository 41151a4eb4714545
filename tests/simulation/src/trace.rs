//! What happened, line by line. The hash is over the very lines that a person reads, so equal hashes mean equal histories.

use std::fmt::{self, Write as _};

/// Lines, kept only if somebody wants to read them, and a hash over all of them.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: Fnv,
    lines: Option<Vec<String>>,
}

/// FNV-1a: to tell two histories apart, not to keep a secret.
#[derive(Debug)]
struct Fnv(u64);

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Self {
        Self {
            hash: Fnv(0xcbf2_9ce4_8422_2325),
            lines: keep.then(Vec::new),
        }
    }

    pub(crate) fn say(&mut self, now: u64, what: fmt::Arguments<'_>) {
        // Writing to a number or a string can't fail.
        self.hash.write_fmt(format_args!("{now} {what}\n")).ok();
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{now:>7} ms  {what}"));
        }
    }

    pub(crate) fn into_parts(self) -> (u64, Vec<String>) {
        (self.hash.0, self.lines.unwrap_or_default())
    }
}

/// Says what happens in the trace of a world.
macro_rules! say {
    ($world:expr, $($what:tt)*) => {
        $world.trace.say($world.now, format_args!($($what)*))
    };
}
pub(crate) use say;
