//! Who asks for something that a log keeps: whoever says so, the user by name, or what the system knows of the process.

use std::convert::Infallible;

/// `given` if it says anything, else the user's number and the host's name: a log that names nobody helps nobody.
pub(crate) fn asks(given: &str) -> Result<String, Infallible> {
    Ok(match given.trim() {
        "" => unnamed(),
        name => name.to_owned(),
    })
}

fn unnamed() -> String {
    let host = gethostname::gethostname();
    let host = host.to_string_lossy();
    match uid() {
        Some(uid) => format!("uid {uid} on {host}"),
        None => format!("a process on {host}"),
    }
}

#[cfg(target_os = "linux")]
fn uid() -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;

    // A process's folder belongs to whom it runs as.
    std::fs::metadata("/proc/self").ok().map(|folder| folder.uid())
}

#[cfg(not(target_os = "linux"))]
fn uid() -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_never_nobody() {
        assert_eq!(asks("ann").as_deref(), Ok("ann"));
        for nobody in ["", "  "] {
            let Ok(unnamed) = asks(nobody);
            assert!(unnamed.contains(" on ") && unnamed.len() > 10, "{unnamed}");
        }
    }
}
