//! Style as a test: layering, where unsafe may stand, how long functions and files get.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARS_MAX: usize = 120;

/// What each folder of code may import of ours
const IMPORTS: [(&str, &[&str]); 5] = [
    ("storage/src", &[]),
    ("udp/src", &["tsubame_storage"]),
    ("http/src", &["tsubame_storage"]),
    ("src", &["tsubame_storage", "tsubame_udp", "tsubame_http", "tsubame"]),
    ("benches", &["tsubame_storage", "tsubame_udp", "tsubame_http", "tsubame", "tsubame_bench"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder, with their text
fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().map_while(Result::ok) {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && !["target", "node_modules"].iter().any(|skip| name == *skip) {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    found
}

fn all_sources() -> BTreeMap<PathBuf, String> {
    let folders = ["src", "udp", "http", "storage", "benches", "examples", "fuzz", "tests"];
    folders.into_iter().flat_map(sources).collect()
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn imports_follow_the_layers() {
    let mut complaints = Vec::new();
    let crates = ["tsubame_storage", "tsubame_udp", "tsubame_http", "tsubame_bench"];
    for (folder, permitted) in IMPORTS {
        for (path, text) in sources(folder) {
            for name in crates.iter().filter(|name| !permitted.contains(name)) {
                if text.contains(&format!("{name}::")) {
                    complaints.push(format!("{} uses {name}", path.display()));
                }
            }
        }
    }
    // Modules that must not know each other.
    let strangers = [
        ("udp/src/wire", ["crate::ring", "crate::steering"].as_slice()),
        ("udp/src/ring", &["crate::connection_id", "crate::wire", "tsubame_storage"]),
        ("udp/src/connection_id", &["crate::ring", "crate::wire"]),
        ("src/tracker", &["udp::ring", "std::fs", "std::time", "tokio"]),
        ("src/outcome", &["udp::ring", "std::fs", "std::time", "tokio"]),
        ("storage/src", &["std::fs", "std::time", "std::thread::", "net::UdpSocket"]),
        ("src", &["unsafe {"]),
    ];
    for (prefix, forbidden) in strangers {
        for (path, text) in all_sources() {
            if path.to_string_lossy().starts_with(prefix) {
                let found = forbidden.iter().filter(|name| text.contains(**name));
                complaints.extend(found.map(|name| format!("{} uses {name}", path.display())));
            }
        }
    }
    for (path, text) in all_sources() {
        let yaml = text.contains("serde_yaml::") && !path.starts_with("src/config");
        if yaml && path != Path::new("tests/tidy.rs") {
            complaints.push(format!("{} knows YAML", path.display()));
        }
    }
    complain(&complaints);
}

#[test]
fn unsafe_stays_where_it_is_allowed() {
    let mut complaints = Vec::new();
    for (path, text) in all_sources() {
        let shown = path.to_string_lossy();
        let shipped = ["src/", "storage/src/", "http/src/", "udp/src/"];
        if !shipped.iter().any(|folder| shown.starts_with(folder)) {
            continue;
        }
        let permitted = shown.starts_with("udp/src/ring");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let uses =
            code.filter(|line| line.contains("unsafe {") || line.contains("unsafe fn")).count();
        if uses > 0 && !permitted {
            complaints.push(format!("{shown} has {uses} uses of unsafe"));
        }
        let notes = text.matches("// SAFETY:").count();
        if notes < uses {
            complaints.push(format!("{shown} has {uses} uses of unsafe and {notes} notes"));
        }
    }
    for (path, attribute) in [
        ("src/lib.rs", "#![forbid(unsafe_code)]"),
        ("src/main.rs", "#![forbid(unsafe_code)]"),
        ("http/src/lib.rs", "#![forbid(unsafe_code)]"),
        ("storage/src/lib.rs", "#![deny(unsafe_code)]"),
        ("udp/src/lib.rs", "#![deny(unsafe_code)]"),
        ("udp/src/wire.rs", "#![forbid(unsafe_code)]"),
        ("udp/src/connection_id.rs", "#![forbid(unsafe_code)]"),
    ] {
        if !fs::read_to_string(root().join(path)).unwrap().contains(attribute) {
            complaints.push(format!("{path} lacks {attribute}"));
        }
    }
    complain(&complaints);
}

#[test]
fn files_functions_and_lines_are_short() {
    let mut complaints = Vec::new();
    for (path, text) in all_sources() {
        let shown = path.display();
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            complaints.push(format!("{shown} has {lines} lines"));
        }
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                complaints.push(format!("{shown}:{} is too long", number + 1));
            }
        }
        complaints.extend(long_functions(&text).into_iter().map(|what| format!("{shown}: {what}")));
    }
    complain(&complaints);
}

/// Functions by their first line and the brace that closes them at the same indentation, as rustfmt
/// leaves them
fn long_functions(text: &str) -> Vec<String> {
    let mut long = Vec::new();
    let mut open: Option<(usize, usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let begins = [
            "fn ",
            "pub fn ",
            "pub(crate) fn ",
            "pub(super) fn ",
            "const fn ",
            "async fn ",
            "pub async fn ",
            "pub const fn ",
        ];
        if open.is_none() && begins.iter().any(|begin| line.trim_start().starts_with(begin)) {
            open = Some((number, indent, line.trim().to_owned()));
        }
        if let Some((start, outer, name)) = &open
            && indent == *outer
            && (line.trim() == "}"
                || line.ends_with(" }")
                || line.ends_with("{}")
                || line.ends_with(';'))
        {
            if number - start > FUNCTION_LINES_MAX {
                long.push(format!("{} lines: {name}", number - start));
            }
            open = None;
        }
    }
    long
}

#[test]
fn nothing_is_left_behind() {
    let mut complaints = Vec::new();
    let left = ["to", "do!"].concat();
    let left =
        [left, ["dbg", "!("].concat(), ["FIX", "ME"].concat(), ["unimpl", "emented!"].concat()];
    for (path, text) in all_sources() {
        let found = left.iter().filter(|word| text.contains(*word));
        complaints.extend(found.map(|word| format!("{} has {word}", path.display())));
        if !text.starts_with("//!") && !text.starts_with("#![") {
            complaints.push(format!("{} does not say what it is", path.display()));
        }
    }
    complain(&complaints);
}

/// What is deployed is tried: every config, and the units and settings beside it
#[test]
fn deploy_is_checked() {
    let mut configs = 0;
    for entry in fs::read_dir(root().join("deploy")).unwrap().map_while(Result::ok) {
        if entry.path().extension().is_some_and(|extension| extension == "yaml") {
            tsubame::config::Config::load(Some(&entry.path())).unwrap();
            configs += 1;
        }
    }
    assert!(configs >= 1);
    let service = read("deploy/tsubame.service");
    let arguments = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let arguments: Vec<_> = arguments.split(' ').skip(1).collect();
    assert_eq!(arguments, ["run", "--config", "/etc/tsubame.yaml"]);
    // Their own tools know best, where they are installed.
    verify(Command::new("systemd-analyze").args(["verify", "--man=no"]), "deploy/tsubame.service");
    verify(Command::new("nft").args(["--check", "--file"]), "deploy/nftables.conf");
    for line in read("deploy/sysctl.conf").lines().filter(|line| line.contains('=')) {
        let (key, value) = line.split_once(" = ").unwrap();
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        assert!(path.exists(), "{key} is not a sysctl");
        assert!(value.parse::<u64>().is_ok(), "{line}");
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Has a tool check a file, if the tool is there; what it says about other things does not count
fn verify(command: &mut Command, path: &str) {
    let Ok(output) = command.arg(root().join(path)).output() else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let name = Path::new(path).file_name().unwrap().to_string_lossy().into_owned();
    // The binary is not installed here, and a sandbox may not let the tool look at the kernel's tables.
    let complaints = said.lines().filter(|line| {
        line.contains(&name)
            && !line.contains("is not executable")
            && !line.contains("not permitted")
    });
    complain(&complaints.map(str::to_owned).collect::<Vec<_>>());
}
