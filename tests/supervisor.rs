//! A shard that ends takes the process with it.

use std::process::Command;
use std::time::Duration;
use tsubame::supervisor::{EXIT_SHARD, ShardError, Supervisor, end_on_panic};

/// Set in the process that this test starts of itself
const VICTIM: &str = "TSUBAME_TEST_VICTIM";

#[test]
fn a_shard_that_panics_ends_the_process_with_its_code_and_one_line() {
    if std::env::var_os(VICTIM).is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
        end_on_panic();
        let body = |number: usize| {
            move |ready: &dyn Fn()| {
                ready();
                if number == 1 {
                    let empty: [u8; 0] = [];
                    // What a bug would do.
                    assert_eq!(empty[std::hint::black_box(number)], 0);
                }
                std::thread::park();
                Ok(())
            }
        };
        let mut shards = Supervisor::start(vec![(0, body(0)), (0, body(1))]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(shards.all_ended(Duration::from_secs(20)));
        unreachable!("the process should be gone");
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_shard_that_panics_ends_the_process_with_its_code_and_one_line"])
        .args(["--nocapture"])
        .env(VICTIM, "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EXIT_SHARD), "{errors}");
    assert!(
        errors.contains("shard-1 panicked at") && errors.contains("tests/supervisor.rs"),
        "{errors}"
    );
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn a_shard_that_cannot_start_says_why() {
    type Body = fn(&dyn Fn()) -> Result<(), ShardError>;
    let fails: Body = |_| Err(ShardError::Ring(std::io::Error::other("broken")));
    let error = Supervisor::start(vec![(0, fails)]).unwrap_err();
    assert!(error.to_string().contains("broken"));
    let serves: Body = |ready| {
        ready();
        Ok(())
    };
    // One that fails is not hidden by another that serves.
    let stays: Body = |ready| {
        ready();
        std::thread::park();
        Ok(())
    };
    for bodies in [vec![(0, stays), (0, fails)], vec![(0, fails), (0, stays)]] {
        let error = Supervisor::start(bodies).unwrap_err();
        assert!(error.to_string().contains("broken"));
    }
    let error = Supervisor::start(vec![(4_000, serves)]).unwrap_err();
    assert!(error.to_string().contains("core 4000"), "{error}");
}
