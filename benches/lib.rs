//! The population that benches and memory figures are measured with.
