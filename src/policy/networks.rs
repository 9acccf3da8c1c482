//! `networks`: answers requests from the listed networks only, or from all others only.

use super::access_list::ListMode;
use crate::lines::{self, Mistakes};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixSet;
use std::net::IpAddr;
use std::path::PathBuf;

/// Parses a network; a single address is a network of one address.
pub fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()
}

/// A filter of source addresses by network. It may hold hundreds of thousands of networks.
#[derive(Clone, Debug)]
pub struct NetworkFilter {
    mode: ListMode,
    v4: PrefixSet<Ipv4Net>,
    v6: PrefixSet<Ipv6Net>,
}

impl NetworkFilter {
    /// Creates a filter of the networks in the config and in files.
    pub fn load(mode: ListMode, inline: &[IpNet], files: &[PathBuf]) -> Result<Self, Mistakes> {
        let mut networks = Self { mode, v4: PrefixSet::new(), v6: PrefixSet::new() };
        inline.iter().for_each(|network| networks.add(*network));
        let mut mistakes = Mistakes::default();
        for path in files {
            lines::read_entries(path, &mut mistakes, |entry| {
                // Published lists of networks use `;` for comments as well.
                let entry = entry.split(';').next().unwrap_or_default().trim();
                if entry.is_empty() {
                    return Ok(());
                }
                let network = parse_network(entry).ok_or_else(|| {
                    let shown = lines::quoted(entry);
                    format!("{shown} is not a network; write one per line: 10.0.0.0/8, fd00::/8")
                })?;
                networks.add(network);
                Ok(())
            });
        }
        mistakes.into_result(networks)
    }

    /// Returns the number of networks.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Returns whether there are no networks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether requests from an address that is in none of the networks are refused.
    pub(super) fn refuses_others(&self) -> bool {
        self.mode == ListMode::Allow
    }

    /// Returns all networks.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.v4.iter().map(IpNet::from).chain(self.v6.iter().map(IpNet::from))
    }

    /// Returns whether requests from a network are refused; the filter may have other rules for parts of it.
    pub(super) fn refuses(&self, network: &IpNet) -> bool {
        let listed = match network {
            IpNet::V4(network) => self.v4.get_lpm(network).is_some(),
            IpNet::V6(network) => self.v6.get_lpm(network).is_some(),
        };
        listed != (self.mode == ListMode::Allow)
    }

    fn add(&mut self, network: IpNet) {
        match network.trunc() {
            IpNet::V4(network) => _ = self.v4.insert(network),
            IpNet::V6(network) => _ = self.v6.insert(network),
        }
    }

    /// Returns whether requests from an address are answered.
    pub fn permits(&self, address: IpAddr) -> bool {
        let listed = match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).is_some(),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).is_some(),
        };
        listed == (self.mode == ListMode::Allow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn addresses_are_matched_by_networks_of_the_config_and_of_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("networks");
        fs::write(
            &path,
            "# networks\r\n10.1.2.3/16 ; not its first address\n2001:db8::/32\n9.9.9.9\n",
        )
        .unwrap();
        let inline = ["172.16.0.0/12".parse().unwrap()];
        let permitted = |mode, address: &str| {
            let networks = NetworkFilter::load(mode, &inline, std::slice::from_ref(&path)).unwrap();
            networks.permits(address.parse().unwrap())
        };
        for (address, listed) in [
            ("10.1.255.1", true),
            ("10.2.0.1", false),
            ("172.31.0.1", true),
            ("::ffff:172.31.0.1", true),
            ("9.9.9.9", true),
            ("9.9.9.8", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(permitted(ListMode::Allow, address), listed, "{address}");
            assert_eq!(permitted(ListMode::Deny, address), !listed, "{address}");
        }
        fs::write(&path, "10.0.0.0/33\n").unwrap();
        let error = NetworkFilter::load(ListMode::Deny, &[], &[path]).unwrap_err().to_string();
        assert!(error.contains("networks:1: \"10.0.0.0/33\" is not a network"), "{error}");
    }

    #[test]
    fn a_hundred_thousand_networks_agree_with_a_linear_search() {
        let seed = 11;
        let mut rng = fastrand::Rng::with_seed(seed);
        let network = |rng: &mut fastrand::Rng| {
            let address = rng.u32(..).into();
            IpNet::V4(Ipv4Net::new(address, rng.u8(14..=32)).unwrap().trunc())
        };
        let inline: Vec<_> = (0..100_000).map(|_| network(&mut rng)).collect();
        let networks = NetworkFilter::load(ListMode::Allow, &inline, &[]).unwrap();
        for _ in 0..100 {
            let address = IpAddr::from(rng.u32(..).to_be_bytes());
            let listed = inline.iter().any(|network| network.contains(&address));
            assert_eq!(networks.permits(address), listed, "seed {seed}: {address}");
        }
    }
}
