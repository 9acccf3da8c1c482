//! Hooks as they are configured.

use super::access_list::{ListMode, ListSources};
use super::clients::ClientFilter;
use super::custom::ConfiguredCustomHook;
use super::interval::{IntervalVariation, LoadBasedInterval};
use super::jwt::{JwtSettings, KeySource};
use super::limits::LimitSettings;
use super::refusal::RefusalReply;
use ipnet::IpNet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tsubame_storage::SubnetPreference;

/// A hook as it is configured.
#[derive(Clone, Debug, PartialEq)]
pub enum HookConfig {
    /// Filter of torrents by info hash.
    AccessList {
        /// Whether the listed torrents are served, or all others.
        mode: ListMode,
        /// Files, directories and info hashes of the list.
        sources: ListSources,
        /// Reply to announces of torrents that are not served.
        reply: RefusalReply,
    },
    /// Filter of clients by peer id.
    Clients(ClientFilter),
    /// Filter of requests by source network.
    Networks {
        /// Whether requests from the listed networks are answered, or from all others.
        mode: ListMode,
        /// Networks listed in the config.
        networks: Vec<IpNet>,
        /// Files with a network on each line.
        files: Vec<PathBuf>,
    },
    /// Requirement of a passkey in the announce URL.
    Passkey {
        /// A file with a passkey on each line.
        file: PathBuf,
        /// Whether scrapes need a passkey as well.
        scrapes: bool,
    },
    /// Requirement of a signed token that approves the torrent.
    Jwt(Arc<JwtSettings>),
    /// Rate limits for each source.
    Limits(LimitSettings),
    /// Random increase of intervals.
    IntervalVariation(IntervalVariation),
    /// Increase of intervals under load.
    IntervalLoad(LoadBasedInterval),
    /// Preference for peers of the same subnet.
    SubnetPreference(SubnetPreference),
    /// Custom hook of the program.
    Custom(ConfiguredCustomHook),
}

impl HookConfig {
    /// Returns the name of the hook in the config.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AccessList { .. } => "access_list",
            Self::Clients(_) => "clients",
            Self::Networks { .. } => "networks",
            Self::Passkey { .. } => "passkey",
            Self::Jwt(_) => "jwt",
            Self::Limits(_) => "limits",
            Self::IntervalVariation(_) => "interval_variation",
            Self::IntervalLoad(_) => "interval_load",
            Self::SubnetPreference(_) => "subnet_preference",
            Self::Custom(custom) => custom.config.0,
        }
    }

    /// Returns whether the config itself may contain entries of the hook, in addition to its files.
    pub(super) fn may_have_inline_entries(&self) -> bool {
        matches!(self, Self::AccessList { .. } | Self::Networks { .. })
    }

    /// Returns the file to which the tracker writes changes of the hook.
    pub fn overrides_file(&self) -> Option<&Path> {
        match self {
            Self::AccessList { sources, .. } => sources.overrides.as_deref(),
            _ => None,
        }
    }

    /// Returns the files and directories that the hook is read from. It is read again when one of them changes.
    pub fn files(&self) -> Vec<&Path> {
        match self {
            Self::AccessList {
                sources: ListSources { files, torrent_directories, .. }, ..
            } => files.iter().chain(torrent_directories).map(PathBuf::as_path).collect(),
            Self::Networks { files, .. } => files.iter().map(PathBuf::as_path).collect(),
            Self::Passkey { file, .. } => vec![file],
            Self::Jwt(settings) => match &settings.keys {
                KeySource::File(file) => vec![file],
                KeySource::Url(_) => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}
