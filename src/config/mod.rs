//! The config: read from YAML and validated as a whole.
//!
//! No other module uses YAML. Every key is optional. `deploy/tsubame.yaml` documents each key with its default;
//! `tsubame config` prints it.

mod cluster;
mod hooks;
mod http;
mod import;
mod in_force;
mod read;
mod root;
mod sections;
mod values;
mod xdp;

pub use cluster::{ClusterConfig, ClusterTlsConfig};
pub use hooks::PLACEHOLDER_HOOK;
pub use http::{HttpConfig, HttpLimitsConfig, TlsConfig};
pub use import::{ImportError, ImportedConfig, import};
pub use in_force::ConfigValue;
pub use read::Mistake;
pub use root::{Config, ConfigError, DEFAULT_YAML};
pub use sections::{
    AnnounceConfig, ControlConfig, CpuSelection, LogConfig, LogFormat, LogLevel, SteeringMode,
    StorageConfig, UdpConfig,
};
pub use values::ConnectionIdKeys;
pub use xdp::{AnnouncePath, XdpConfig};
