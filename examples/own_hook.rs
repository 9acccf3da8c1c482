//! A tracker with a hook of its own: it refuses peers that claim to listen where other services do.
//!
//! `cargo run --release --example own_hook -- run --config FILE`, where the file has
//! `hooks: [{name: ports, options: {deny: [53, 80, 443]}}]`

use serde_json::Value;
use std::sync::Arc;
use tsubame::policy::own::{Kind, OwnHook};
use tsubame::policy::{Answer, Asked, Parameters, Told};

/// Ports that a swarm's clients would otherwise call on, whoever answers there
#[derive(Debug)]
struct Ports(Vec<u16>);

impl OwnHook for Ports {
    fn judge(&self, asked: &Asked<'_>, _: &Parameters<'_>, _: &mut Told) -> Result<(), Answer> {
        match self.0.contains(&asked.port) {
            true => Err(Answer::Error("no peer listens on this port")),
            false => Ok(()),
        }
    }
}

fn ports(options: &Value) -> Result<Arc<dyn OwnHook>, String> {
    let deny = serde_json::from_value(options["deny"].clone());
    let deny = deny.map_err(|error| format!("deny: {error}; give ports, as [53, 80]"))?;
    Ok(Arc::new(Ports(deny)))
}

const KINDS: &[Kind] = &[Kind { name: "ports", make: ports }];

fn main() {
    tsubame::cli::main(KINDS)
}

#[cfg(test)]
mod tests {
    use tsubame::config::Config;

    #[test]
    fn ports_are_read_from_the_config() {
        tsubame::policy::own::install(super::KINDS);
        let read = |deny| {
            let hooks = format!("hooks: [{{name: ports, options: {{deny: {deny}}}}}]");
            Config::parse("test", &hooks).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(read("[53, 80]"), Ok(()));
        let mistake = read("[99999]").expect_err("that is no port");
        assert!(mistake.starts_with("test:1: hooks.0.options: deny: "), "{mistake}");
    }
}
