//! A tracker with a custom hook that refuses peers which claim to listen on the ports of well-known services.
//!
//! Run it by `cargo run --release --example custom_hook -- run --config FILE`, where the file contains
//! `hooks: [{name: ports, options: {deny: [53, 80, 443]}}]`.

use serde_json::Value;
use std::sync::Arc;
use tsubame::policy::custom::{CustomHook, CustomHookKind};
use tsubame::policy::{AnnounceContext, Intervals, Parameters, RefusalReply};

/// Ports on which no peer is accepted. The clients of a swarm would connect to whatever service listens there.
#[derive(Debug)]
struct Ports(Vec<u16>);

impl CustomHook for Ports {
    fn check(
        &self,
        context: &AnnounceContext<'_>,
        _: &Parameters<'_>,
        _: &mut Intervals,
    ) -> Result<(), RefusalReply> {
        match self.0.contains(&context.port) {
            true => Err(RefusalReply::Error("this port is not permitted on this tracker")),
            false => Ok(()),
        }
    }
}

/// Creates the hook from its options.
fn ports(options: &Value) -> Result<Arc<dyn CustomHook>, String> {
    let deny = serde_json::from_value(options["deny"].clone());
    let deny = deny.map_err(|error| format!("deny: {error}; use a list such as [53, 80]"))?;
    Ok(Arc::new(Ports(deny)))
}

/// The custom hooks of this program.
const KINDS: &[CustomHookKind] = &[CustomHookKind { name: "ports", make: ports }];

fn main() {
    tsubame::cli::main(KINDS)
}

#[cfg(test)]
mod tests {
    use tsubame::config::Config;

    #[test]
    fn ports_are_read_from_the_config() {
        tsubame::policy::custom::install(super::KINDS);
        let read = |deny| {
            let hooks = format!("hooks: [{{name: ports, options: {{deny: {deny}}}}}]");
            Config::parse("test", &hooks).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(read("[53, 80]"), Ok(()));
        let mistake = read("[99999]").expect_err("not a port");
        assert!(mistake.starts_with("test:1: hooks.0.options: deny: "), "{mistake}");
    }
}
