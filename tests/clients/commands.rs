//! Commands of BitTorrent clients, from a torrent file, the directory of the payload, and an address to bind.

use std::path::Path;
use std::process::Command;

pub(crate) fn libtorrent(torrent: &Path, directory: &Path, address: &str) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/libtorrent_client.py");
    let interface =
        if address.contains(':') { format!("[{address}]:6881") } else { format!("{address}:6881") };
    command.arg(script).arg(torrent).arg(directory).arg(interface);
    command
}

pub(crate) fn transmission(torrent: &Path, directory: &Path, _address: &str) -> Command {
    let mut command = Command::new("transmission-cli");
    let config = directory.join("config");
    std::fs::create_dir_all(&config).unwrap();
    let settings = "{\"dht-enabled\": false, \"lpd-enabled\": false, \"pex-enabled\": false, \
                    \"utp-enabled\": false, \"port-forwarding-enabled\": false}";
    std::fs::write(config.join("settings.json"), settings).unwrap();
    command.arg("--verify").arg("--no-portmap").arg("--config-dir").arg(config);
    command.arg("--download-dir").arg(directory).arg(torrent);
    command
}

pub(crate) fn aria2(torrent: &Path, directory: &Path, _address: &str) -> Command {
    let mut command = Command::new("aria2c");
    // aria2 sends UDP announces over the socket of its DHT, which a private torrent does not use otherwise.
    command.args(["--no-conf=true", "--enable-dht=true", "--dht-listen-port=6882"]);
    command.arg(format!("--dht-file-path={}", directory.join("dht.dat").display()));
    command.args(["--bt-enable-lpd=false", "--enable-peer-exchange=false", "--seed-ratio=0.0"]);
    command.args([
        "--check-certificate=false",
        "--check-integrity=true",
        "--listen-port=6881",
        "--summary-interval=5",
    ]);
    command.args(["--file-allocation=none", "--bt-tracker-interval=5"]);
    command.arg("--dir").arg(directory).arg(torrent);
    command
}

pub(crate) fn rtorrent(torrent: &Path, directory: &Path, address: &str) -> Command {
    let mut command = Command::new("rtorrent");
    let session = directory.join("session");
    std::fs::create_dir_all(&session).unwrap();
    command.args(["-n", "-p", "6881-6881"]).arg("-s").arg(session);
    command.arg("-d").arg(directory).arg("-b").arg(address);
    for option in [
        "system.daemon.set=true",
        "dht.mode.set=disable",
        "protocol.pex.set=no",
        "trackers.use_udp.set=yes",
        "pieces.hash.on_completion.set=no",
        "network.http.ssl_verify_peer.set=0",
    ] {
        command.args(["-o", option]);
    }
    command.arg(torrent);
    command
}

pub(crate) fn qbittorrent(torrent: &Path, directory: &Path, address: &str) -> Command {
    let settings = directory.join("profile/qBittorrent/config");
    std::fs::create_dir_all(&settings).unwrap();
    let text = format!(
        "[LegalNotice]\nAccepted=true\n\n[BitTorrent]\nSession\\DHTEnabled=false\n\
         Session\\LSDEnabled=false\nSession\\PeXEnabled=false\nSession\\Port=6881\n\
         Session\\Interface=\nSession\\InterfaceAddress={address}\n\n\
         [Network]\nPortForwardingEnabled=false\n\n[Preferences]\nWebUI\\Address=127.0.0.1\n"
    );
    std::fs::write(settings.join("qBittorrent.conf"), text).unwrap();
    let mut command = Command::new("qbittorrent-nox");
    command.arg(format!("--profile={}", directory.join("profile").display()));
    command.arg(format!("--save-path={}", directory.display()));
    command.args(["--webui-port=8080", "--skip-dialog=true"]).arg(torrent);
    command
}

pub(crate) fn deluge(torrent: &Path, directory: &Path, address: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/deluge_client.sh");
    let mut command = Command::new(script);
    command.arg(torrent).arg(directory).arg(address);
    command
}

pub(crate) fn lftp(torrent: &Path, directory: &Path, address: &str) -> Command {
    let mut command = Command::new("lftp");
    let which = if address.contains(':') { "ipv6" } else { "ip" };
    command.arg("-c").arg(format!(
        "set cmd:move-background no; set torrent:{which} {address}; \
         set torrent:port-range 6881-6889; set torrent:use-dht no; \
         torrent -O {} {}; wait all",
        directory.display(),
        torrent.display()
    ));
    command.env("HOME", directory);
    command
}
