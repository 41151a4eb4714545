//! Tests with credentials for S3 run again in a process of their own: credentials come from the environment and from
//! nowhere else, and a developer's own must not leak in.

use std::process::Command;

use haulage_node::store::S3Settings;
use haulage_test_support::s3::{ACCESS_KEY, SECRET_KEY};

/// Runs the test `name` in a process with these credentials. True in that process; false, after it succeeded, outside.
pub(crate) fn is_inside(name: &str, secret: &str) -> bool {
    const INSIDE: &str = "HAULAGE_S3_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().expect("it is there, and sound"));
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(key);
    }
    let nothing = if cfg!(windows) { "NUL" } else { "/dev/null" };
    command.envs([("AWS_CONFIG_FILE", nothing), ("AWS_SHARED_CREDENTIALS_FILE", nothing)]);
    command.envs([
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", secret),
        (INSIDE, "1"),
    ]);
    let output = command.output().expect("it is there, and sound");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert!(!said.contains(SECRET_KEY), "a secret was printed: {said}");
    false
}

/// Runs a test on a runtime like a node's.
pub(crate) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("it is there, and sound")
        .block_on(test);
}

/// How the server at this address is reached.
pub(crate) fn settings(endpoint: &str) -> S3Settings {
    S3Settings {
        endpoint: Some(endpoint.to_owned()),
        path_style: true,
    }
}
