//! Runs work that recurses on a thread with a deep stack, and turns a panic of a library into an error.
//!
//! sqlparser and DataFusion walk, compare and drop trees recursively, and a tree can be as deep as the SQL has tokens. A
//! thread that runs out of stack ends the whole process, so whatever touches SQL runs here. That a stack of this size is
//! enough is the business of `compile::depth`, which bounds the tokens before anything is parsed.

use std::any::Any;
use std::thread::Builder;

/// Only reserved: a page is taken when it is first touched. The deepest trees of `compile::depth::MAX_TOKENS` tokens are
/// parsed, looked at and dropped within 16 MiB in a debug build.
const STACK: usize = 64 << 20;

/// Runs `work` on a deep stack and waits for it. `Err` says why there is no result: no thread, or a panic.
pub(crate) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = Builder::new()
            .name("haulage-plan".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| format!("no thread could be started to plan the SQL: {error}"))?;
        thread
            .join()
            .map_err(|panic| format!("the SQL engine broke down: {}", said(panic.as_ref())))
    })
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .and_then(|text| text.lines().next())
        .unwrap_or("no reason was given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_a_result_comes_back() {
        assert_eq!(run(|| 5), Ok(5));
        let broken = run(|| assert_eq!(1, 2, "a reason"));
        assert!(broken.is_err_and(|why| why.contains("the SQL engine broke down")));
    }

    #[test]
    fn what_needs_a_deep_stack_has_one() {
        fn down(levels: u32) -> u64 {
            let ballast = std::hint::black_box([u64::from(levels); 32]);
            if levels == 0 {
                0
            } else {
                ballast[7].min(1) + down(levels - 1)
            }
        }
        assert_eq!(run(|| down(50_000)), Ok(50_000));
    }
}
