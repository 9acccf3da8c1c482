//! Shard failures end the process.

use std::process::Command;
use std::time::Duration;
use tsubame::process::supervisor::{EXIT_SHARD, ShardError, Supervisor, end_on_panic};

/// Environment variable that is set in the child process in which the shard panics.
const CHILD_MARKER: &str = "TSUBAME_TEST_CHILD";

#[test]
fn a_shard_that_panics_ends_the_process_with_its_code_and_one_line() {
    if std::env::var_os(CHILD_MARKER).is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
        end_on_panic();
        let body = |number: usize| {
            move |ready: &dyn Fn()| {
                ready();
                if number == 1 {
                    let empty: [u8; 0] = [];
                    // Panics, as a bug would.
                    assert_eq!(empty[std::hint::black_box(number)], 0);
                }
                std::thread::park();
                Ok(())
            }
        };
        let mut shards = Supervisor::start(vec![(0, body(0)), (0, body(1))]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(shards.wait_for_exits(Duration::from_secs(20)));
        unreachable!("the process did not end");
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_shard_that_panics_ends_the_process_with_its_code_and_one_line"])
        .args(["--nocapture"])
        .env(CHILD_MARKER, "1")
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
fn the_error_of_a_shard_that_cannot_start_is_returned() {
    type Body = fn(&dyn Fn()) -> Result<(), ShardError>;
    let fails: Body = |_| Err(ShardError::Ring(std::io::Error::other("broken")));
    let error = Supervisor::start(vec![(0, fails)]).unwrap_err();
    assert!(error.to_string().contains("broken"));
    let serves: Body = |ready| {
        ready();
        Ok(())
    };
    // The failure of one shard is reported although another one serves.
    let keeps_running: Body = |ready| {
        ready();
        std::thread::park();
        Ok(())
    };
    for bodies in [vec![(0, keeps_running), (0, fails)], vec![(0, fails), (0, keeps_running)]] {
        let error = Supervisor::start(bodies).unwrap_err();
        assert!(error.to_string().contains("broken"));
    }
    let error = Supervisor::start(vec![(4_000, serves)]).unwrap_err();
    assert!(error.to_string().contains("core 4000"), "{error}");
}
