//! Checks of style and structure: imports between modules, unsafe code, length of functions and files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARS_MAX: usize = 120;

/// Crates of the workspace: the folder of their sources, and their name in paths.
const CRATES: [(&str, &str); 5] = [
    ("storage/src", "tsubame_storage"),
    ("udp/src", "tsubame_udp"),
    ("http/src", "tsubame_http"),
    ("src", "tsubame"),
    ("benches/load", "tsubame_load"),
];

/// Crates of the workspace that a folder must not use, not even in unit tests.
const FORBIDDEN_CRATES: [(&str, &[&str]); 4] = [
    ("storage/src", &["tsubame_udp::", "tsubame_http::", "tsubame_bench::"]),
    ("udp/src", &["tsubame_http::", "tsubame_bench::"]),
    ("http/src", &["tsubame_udp::", "tsubame_bench::"]),
    ("src", &["tsubame_bench::"]),
];

/// Items that files below a path prefix must not use, not even in unit tests.
const FORBIDDEN: [(&str, &[&str]); 11] = [
    ("udp/src/wire", &["crate::ring", "crate::steering", "std::net::UdpSocket", "std::time"]),
    ("udp/src/ring", &["crate::connection_id", "crate::wire", "tsubame_storage"]),
    ("udp/src/connection_id", &["crate::ring", "crate::wire", "std::time"]),
    ("http/src", &["std::fs", "std::time", "std::net::Tcp", "tokio"]),
    ("storage/src", &["std::fs", "std::time", "std::thread::", "net::UdpSocket", "tokio"]),
    ("src/cluster", &["std::fs", "Instant", "SystemTime", "tokio", "async_nats"]),
    ("src/tracker", &["udp::ring", "std::fs", "std::time", "tokio"]),
    ("src/stats", &["std::fs", "std::time", "tokio"]),
    ("src/stats/outcome", &["udp::ring"]),
    ("src/http", &["tsubame_udp", "shard::datapath", "shard::mesh"]),
    ("src", &["unsafe {"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all Rust files below a folder with their text.
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

fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Returns the code of a file without comments and unit tests.
fn code_of(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let without_comment = |line| str::split(line, "//").next().unwrap_or_default();
    code.lines().map(without_comment).collect::<Vec<&str>>().join("\n")
}

/// Expands the tree of a `use` item to paths.
fn expand(tree: &str, prefix: &str, paths: &mut Vec<String>) {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, byte) in tree.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((outer, inner)) => {
                let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
                expand(inner, &format!("{prefix}{}", outer.trim()), paths);
            }
            None => paths.push(format!("{prefix}{part}")),
        }
    }
}

/// Returns all paths in a file: those of `use` items, and those in expressions and types.
fn paths_in(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for item in code.split("\nuse ").chain(code.split(" use ")).skip(1) {
        if let Some((tree, _)) = item.split_once(';') {
            expand(tree, "", &mut paths);
        }
    }
    let is_path = |byte: char| byte.is_alphanumeric() || byte == '_' || byte == ':';
    let words = code.split(|byte| !is_path(byte)).filter(|word| word.contains("::"));
    paths.extend(words.map(str::to_owned));
    paths
}

/// Returns the modules of a crate by path (empty for the crate root), with their file and code.
fn modules_of(folder: &str) -> BTreeMap<String, (PathBuf, String)> {
    let mut modules = BTreeMap::new();
    for (path, text) in sources(folder) {
        let within = path.strip_prefix(folder).unwrap().with_extension("");
        let mut parts: Vec<String> =
            within.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if parts.iter().any(|part| part == "tests") {
            continue;
        }
        let is_root = parts.len() == 1 && ["lib", "main"].contains(&parts[0].as_str());
        if is_root && parts[0] == "main" && root().join(folder).join("lib.rs").exists() {
            continue;
        }
        if is_root || parts.last().is_some_and(|last| last == "mod") {
            parts.pop();
        }
        modules.insert(parts.join("::"), (path, code_of(&text)));
    }
    modules
}

/// Returns the modules that each module of a crate uses; the root does not count.
fn uses_within(modules: &BTreeMap<String, (PathBuf, String)>) -> BTreeMap<&str, BTreeSet<String>> {
    let mut uses = BTreeMap::new();
    for (module, (_, code)) in modules {
        let used: &mut BTreeSet<String> = uses.entry(module.as_str()).or_default();
        for path in paths_in(code) {
            let mut full: Vec<&str> = module.split("::").filter(|it| !it.is_empty()).collect();
            let mut parts = path.split("::").filter(|it| !it.is_empty()).peekable();
            match parts.peek().copied() {
                Some("crate") => {
                    parts.next();
                    full.clear();
                }
                Some("self") => _ = parts.next(),
                Some("super") => {
                    while parts.next_if_eq(&"super").is_some() {
                        full.pop();
                    }
                }
                // A path that starts with a child module. All others belong to other crates or to types.
                Some(first) => {
                    let child = full.iter().copied().chain([first]).collect::<Vec<_>>().join("::");
                    if !modules.contains_key(&child) {
                        continue;
                    }
                }
                None => continue,
            }
            full.extend(parts);
            let longest = (0..=full.len()).rev().map(|len| full[..len].join("::"));
            let target = longest.into_iter().find(|path| modules.contains_key(path));
            used.extend(target.filter(|target| !target.is_empty() && target != module));
        }
    }
    uses
}

#[test]
fn no_file_is_in_a_cycle_of_imports() {
    let mut violations = Vec::new();
    for (folder, name) in CRATES {
        let modules = modules_of(folder);
        let uses = uses_within(&modules);
        for module in uses.keys() {
            let mut reached: BTreeSet<&str> = BTreeSet::new();
            let mut waiting: Vec<&str> = vec![module];
            while let Some(next) = waiting.pop() {
                let found = uses.get(next).into_iter().flatten().map(String::as_str);
                waiting.extend(found.filter(|found| reached.insert(found)));
            }
            if reached.contains(module) {
                let direct = &uses[module];
                violations.push(format!("{name}::{module} is in a cycle; it uses {direct:?}"));
            }
        }
    }
    assert_none(&violations);
}

/// Returns the name of a top-level module in the table of imports.
fn top_level(name: &str, module: &str) -> String {
    match module.split("::").next() {
        Some(first) if !first.is_empty() && ["tsubame", "tsubame_udp"].contains(&name) => {
            format!("{name}::{first}")
        }
        _ => name.to_owned(),
    }
}

/// The table of imports in ARCHITECTURE.md lists exactly the imports of the code.
#[test]
fn the_table_of_imports_matches_the_code() {
    let mut actual: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (folder, name) in CRATES.into_iter().filter(|(folder, _)| *folder != "benches/load") {
        let modules = modules_of(folder);
        let uses = uses_within(&modules);
        for (module, (_, code)) in modules.iter().filter(|(module, _)| {
            // The root of these crates only declares its modules.
            !module.is_empty() || !["tsubame", "tsubame_udp"].contains(&name)
        }) {
            let own = top_level(name, module);
            let used = actual.entry(own.clone()).or_default();
            used.extend(uses[module.as_str()].iter().map(|target| top_level(name, target)));
            for path in paths_in(code) {
                let mut parts = path.split("::");
                let (first, second) = (parts.next().unwrap_or_default(), parts.next());
                match first {
                    "tsubame_storage" | "tsubame_http" => used.extend([first.to_owned()]),
                    "tsubame_udp" => used.extend(second.map(|it| format!("{first}::{it}"))),
                    _ => {}
                }
            }
            used.remove(&own);
        }
    }
    let architecture = read("ARCHITECTURE.md");
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let (_, table) = architecture
        .split_once("| module | imports |")
        .expect("ARCHITECTURE.md has a table of imports");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let documented: BTreeMap<String, BTreeSet<String>> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').collect();
            (names(cells[1]).into_iter().next().unwrap(), names(cells[2]))
        })
        .collect();
    let mut violations = Vec::new();
    for (module, imports) in &actual {
        if documented.get(module) != Some(imports) {
            let list: Vec<_> = imports.iter().map(|it| format!("`{it}`")).collect();
            violations.push(format!("| `{module}` | {} |", list.join(", ")));
        }
    }
    violations.extend(documented.keys().filter(|it| !actual.contains_key(*it)).cloned());
    assert_none(&violations);
}

#[test]
fn modules_use_no_forbidden_items() {
    let mut violations = Vec::new();
    for (path, text) in all_sources() {
        let shown = path.to_string_lossy();
        for (prefix, forbidden) in FORBIDDEN_CRATES.into_iter().chain(FORBIDDEN) {
            if shown.starts_with(prefix) {
                let found = forbidden.iter().filter(|name| text.contains(**name));
                violations.extend(found.map(|name| format!("{shown} uses {name}")));
            }
        }
        if text.contains("serde_yaml::")
            && !shown.starts_with("src/config")
            && shown != "tests/tidy.rs"
        {
            violations.push(format!("{shown} uses YAML"));
        }
    }
    assert_none(&violations);
}

/// No two types share a name. Types of tests and fuzz targets are not checked.
#[test]
fn no_two_types_share_a_name() {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in all_sources() {
        let shown = path.display().to_string();
        if shown.contains("tests") || shown.starts_with("fuzz") {
            continue;
        }
        for line in code_of(&text).lines() {
            let line = line.strip_prefix("pub ").unwrap_or(line);
            let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
            let line = line.strip_prefix("pub(super) ").unwrap_or(line);
            let kinds = ["struct ", "enum ", "trait ", "type ", "union "];
            let Some(rest) = kinds.iter().find_map(|kind| line.strip_prefix(kind)) else {
                continue;
            };
            let name = rest.split(|byte: char| !byte.is_alphanumeric()).next().unwrap_or_default();
            types.entry(name.to_owned()).or_default().push(shown.clone());
        }
    }
    let shared = types.iter().filter(|(_, files)| files.len() > 1);
    assert_none(&shared.map(|(name, files)| format!("{name} is in {files:?}")).collect::<Vec<_>>());
}

/// Words for which the field has a technical term, each split in two so that this file does not contain them.
const METAPHORS: [(&str, &str); 18] = [
    ("hou", "se"),
    ("ro", "oms"),
    ("ho", "mes"),
    ("de", "sk"),
    ("se", "at"),
    ("lug", "gage"),
    ("be", "ll"),
    ("doorb", "ell"),
    ("ha", "nds"),
    ("bo", "oks"),
    ("comp", "any"),
    ("pati", "ence"),
    ("neigh", "bour"),
    ("neigh", "bours"),
    ("fa", "te"),
    ("fa", "tes"),
    ("ros", "ter"),
    ("tic", "ket"),
];

#[test]
fn no_metaphors_are_left() {
    let mut violations = Vec::new();
    let words: BTreeSet<String> =
        METAPHORS.iter().map(|(first, second)| [*first, *second].concat()).collect();
    let documents = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "benches/README.md"];
    let documents = documents.map(|path| (PathBuf::from(path), read(path)));
    for (path, text) in all_sources().into_iter().chain(documents) {
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let mut found = lower.split(|byte: char| !byte.is_alphabetic());
            if let Some(word) = found.find(|word| words.contains(*word)) {
                violations.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn unsafe_stays_where_it_is_allowed() {
    let mut violations = Vec::new();
    for (path, text) in all_sources() {
        let shown = path.to_string_lossy();
        let shipped = ["src/", "storage/src/", "http/src/", "udp/src/"];
        if !shipped.iter().any(|folder| shown.starts_with(folder)) {
            continue;
        }
        let permitted = ["udp/src/ring", "udp/src/xdp/link", "udp/src/xdp/socket"]
            .iter()
            .any(|it| shown.starts_with(it));
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let uses =
            code.filter(|line| line.contains("unsafe {") || line.contains("unsafe fn")).count();
        if uses > 0 && !permitted {
            violations.push(format!("{shown} has {uses} uses of unsafe"));
        }
        let notes = text.matches("// SAFETY:").count();
        if notes < uses {
            violations
                .push(format!("{shown} has {uses} uses of unsafe and {notes} SAFETY comments"));
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
            violations.push(format!("{path} lacks {attribute}"));
        }
    }
    assert_none(&violations);
}

#[test]
fn files_functions_and_lines_are_short() {
    let mut violations = Vec::new();
    for (path, text) in all_sources() {
        let shown = path.display();
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            violations.push(format!("{shown} has {lines} lines"));
        }
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                violations.push(format!("{shown}:{} is too long", number + 1));
            }
        }
        violations.extend(long_functions(&text).into_iter().map(|what| format!("{shown}: {what}")));
    }
    assert_none(&violations);
}

/// Returns the functions that are too long. A function ends at the closing brace with the indentation of its first
/// line, as rustfmt formats it.
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
fn no_debug_code_is_left_and_files_have_headers() {
    let mut violations = Vec::new();
    let left = ["to", "do!"].concat();
    let left =
        [left, ["dbg", "!("].concat(), ["FIX", "ME"].concat(), ["unimpl", "emented!"].concat()];
    for (path, text) in all_sources() {
        let found = left.iter().filter(|word| text.contains(*word));
        violations.extend(found.map(|word| format!("{} has {word}", path.display())));
        if !text.starts_with("//!") && !text.starts_with("#![") {
            violations.push(format!("{} has no header comment", path.display()));
        }
    }
    assert_none(&violations);
}

/// All configs in deploy/ can be loaded, and the systemd unit, the nftables rules and the sysctl settings are valid.
#[test]
fn deployment_files_are_valid() {
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
    // The tools of systemd and nftables check these files where they are installed.
    verify(Command::new("systemd-analyze").args(["verify", "--man=no"]), "deploy/tsubame.service");
    let verify_units = ["verify", "--man=no", "deploy/tsubame.service"];
    verify(
        Command::new("systemd-analyze").args(verify_units).current_dir(root()),
        "deploy/examples/tsubame.socket",
    );
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

/// Checks a file with a tool, if it is installed. Messages about other files are ignored.
fn verify(command: &mut Command, path: &str) {
    let Ok(output) = command.arg(root().join(path)).output() else { return };
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let name = Path::new(path).file_name().unwrap().to_string_lossy().into_owned();
    // The binary is not installed here, and in a sandbox the tool may lack access to the kernel's tables.
    let violations = errors.lines().filter(|line| {
        line.contains(&name)
            && !line.contains("is not executable")
            && !line.contains("not permitted")
    });
    assert_none(&violations.map(str::to_owned).collect::<Vec<_>>());
}
