//! The pages of docs/: links, config blocks, the configuration reference, and the commands, which are run as written.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod common;

use common::container::{Container, SOURCE};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tsubame::config::{Config, DEFAULT_YAML};
use tsubame::process::settings::KEYS_THAT_NEED_RESTART;

/// Environment variable that makes the test write docs/configuration.md instead of comparing it.
const UPDATE: &str = "TSUBAME_UPDATE_DOCS";

/// Commands that are not run, or replaced, and why.
const REPLACED: [(&str, &str); 8] = [
    // Builds from source: the two commands of the README are run by CI and by hand on a fresh clone.
    ("cargo run --release --", "tsubame"),
    ("cargo run --release", "true"),
    ("tests/run", "true"),
    ("cargo build --release -p tsubame-bench", "true"),
    // The programs and packages have been built before the container was started, which has no network.
    ("cargo install cargo-deb", "true"),
    ("deploy/package", "true"),
    ("deploy/build", "true"),
    ("alias tsubame-load", "true"),
];

/// Programs that need hardware, or settings of the kernel that a container may not change. Each is replaced by a link
/// to `/bin/true`.
const NOT_IN_CONTAINER: [&str; 4] = ["ethtool", "cpupower", "podman", "sysctl"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the pages for users: those of docs/, README.md and SECURITY.md.
fn pages() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let is_page = |path: &PathBuf| path.extension().is_some_and(|it| it == "md");
    let mut pages: Vec<PathBuf> = docs.filter(is_page).collect();
    pages.sort();
    pages.extend(["README.md", "SECURITY.md"].map(|name| root().join(name)));
    pages
}

/// A block of code of a page.
struct CodeBlock {
    page: String,
    line: usize,
    /// What follows the opening fence, such as `yaml`.
    language: String,
    lines: Vec<String>,
}

fn code_blocks() -> Vec<CodeBlock> {
    let mut blocks: Vec<CodeBlock> = Vec::new();
    for page in pages() {
        let mut is_open = false;
        for (text, line) in read(&page).lines().zip(1..) {
            match text.strip_prefix("```") {
                Some(_) if is_open => is_open = false,
                Some(language) => {
                    let name = page.strip_prefix(root()).unwrap().display().to_string();
                    let (language, lines) = (language.to_owned(), Vec::new());
                    blocks.push(CodeBlock { page: name, line, language, lines });
                    is_open = true;
                }
                None if is_open => blocks.last_mut().unwrap().lines.push(text.to_owned()),
                None => {}
            }
        }
        assert!(!is_open, "{}: a block of code is not closed", page.display());
    }
    blocks
}

/// Returns the fragment by which a heading can be linked to.
fn anchor(heading: &str) -> String {
    let plain = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = plain.chars().filter(|it| it.is_alphanumeric() || [' ', '-', '_'].contains(it));
    kept.map(|it| if it == ' ' { '-' } else { it }).collect()
}

#[test]
fn links_lead_to_pages_and_headings() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            let is_found = target.exists()
                && (fragment.is_empty()
                    || read(&target)
                        .lines()
                        .any(|it| it.starts_with('#') && anchor(it) == fragment));
            if !is_found {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_summary_has_every_page() {
    let summary = read(&root().join("docs/SUMMARY.md"));
    for page in pages().iter().filter(|page| page.parent() == Some(&root().join("docs"))) {
        let name = page.file_name().unwrap().to_string_lossy();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "{name}");
    }
}

#[test]
fn configs_in_the_pages_are_valid() {
    let blocks = code_blocks();
    let mut configs = 0;
    for CodeBlock { page, line, language, lines } in &blocks {
        let text = lines.join("\n");
        match language.as_str() {
            "yaml" => {
                // A list of keys is read from a file that this machine does not have.
                let text = text.replace("/etc/tsubame/connection-id-keys", "[]");
                if let Err(error) = Config::parse(&format!("{page}:{line}"), &text) {
                    panic!("{error}");
                }
                configs += 1;
            }
            "yaml prometheus" => assert!(text.contains("scrape_configs")),
            "console" | "text" | "nginx" | "haproxy" => {}
            // tests/cluster.rs runs it.
            "bash" if page.contains("cluster") => {}
            other => panic!("{page}:{line}: {other:?} blocks are not tested"),
        }
    }
    assert!(configs > 5);
}

/// Returns a Markdown table of the keys of a commented YAML file: name, value and comment.
fn reference(yaml: &str, needs_restart: &[&str]) -> String {
    let mut table = "| key | default | meaning |\n|---|---|---|\n".to_owned();
    // Indentation and names of the enclosing sections.
    let mut sections: Vec<(usize, &str)> = Vec::new();
    let mut comment = String::new();
    for line in yaml.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(words) = text.strip_prefix("# ") {
            comment += if comment.is_empty() { "" } else { " " };
            comment += words;
            continue;
        }
        let Some((key, value)) = text.split_once(':').filter(|_| !text.is_empty()) else {
            comment.clear();
            continue;
        };
        sections.retain(|(of, _)| *of < indent);
        let path =
            sections.iter().map(|(_, name)| *name).chain([key]).collect::<Vec<_>>().join(".");
        let mut meaning = std::mem::take(&mut comment).replace('|', "\\|");
        if needs_restart.contains(&path.as_str()) {
            meaning += " Needs a restart.";
        }
        match value.trim() {
            "" => {
                sections.push((indent, key));
                if !meaning.is_empty() {
                    _ = writeln!(table, "| **`{path}`** | | {meaning} |");
                }
            }
            value => _ = writeln!(table, "| `{path}` | `{value}` | {} |", meaning.trim()),
        }
    }
    table
}

/// Returns the reference of the hooks: a section for each, with its text and the table of its options.
fn hook_reference(yaml: &str) -> String {
    let mut text = String::new();
    let list = yaml.split_once("\nhooks:\n").unwrap().1;
    for hook in list.split("\n\n") {
        let (head, options) = hook.split_once("    options:\n").unwrap();
        let is_comment = |line: &&str| line.trim_start().starts_with("# ");
        let about = head.lines().filter(is_comment).map(|line| line.trim_start_matches(['#', ' ']));
        let name = head.lines().find_map(|line| line.trim().strip_prefix("- name: ")).unwrap();
        let about = about.collect::<Vec<_>>().join(" ");
        let options: Vec<_> = options.lines().map(str::trim_start).collect();
        let table = reference(&options.join("\n"), &[])
            .replace("| key | default |", "| option | example |");
        _ = write!(text, "### {name}\n\n{about}\n\n{table}\n");
    }
    text
}

#[test]
fn the_configuration_reference_is_made_from_the_default_config() {
    let path = root().join("docs/configuration.md");
    let body = DEFAULT_YAML.split_once("\n\n").unwrap().1;
    let hooks = read(&root().join("deploy/hooks.yaml"));
    let text = format!(
        "# Configuration reference\n\n\
         Made from `deploy/tsubame.yaml` and `deploy/hooks.yaml` by `{UPDATE}=1 cargo test --test documentation`; do \
         not edit.\n\n\
         The config is one YAML file. Every key is optional. Durations are written as 45s, 30m or 2h, sizes as 64MiB.\n\
         `tsubame config` prints the default config, `tsubame check --config FILE` reports every mistake, and a reload \
         (SIGHUP)\napplies all changes but those of keys that need a restart.\n\n\
         ## Keys\n\n{}\n\
         ## Hooks\n\n\
         Hooks are listed under `hooks`, each with its `name` and `options`, and check a request in that order: see\n\
         [policy](policy.md). The values here are examples.\n\n{}",
        reference(body, &KEYS_THAT_NEED_RESTART),
        hook_reference(&hooks).trim_end()
    ) + "\n";
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(
        read(&path) == text,
        "docs/configuration.md is old: run {UPDATE}=1 cargo test --test documentation"
    );
    // Every key of the config is in the table.
    let keys: BTreeSet<String> =
        Config::load(None).unwrap().values.into_iter().map(|it| it.key).collect();
    let missing: Vec<_> =
        keys.iter().filter(|key| !text.contains(&format!("| `{key}` |"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Returns the commands of a block: lines that begin with a prompt.
fn commands(block: &CodeBlock) -> Vec<String> {
    let command = |line: &String| {
        let command = line.strip_prefix("$ ").or(line.strip_prefix("# "));
        let command = command.unwrap_or_else(|| {
            panic!("{}:{}: {line:?} has no prompt, $ or #", block.page, block.line)
        });
        let replaced = REPLACED.iter().find(|(from, _)| command.starts_with(from));
        replaced.map_or_else(|| command.to_owned(), |(from, to)| command.replacen(from, to, 1))
    };
    block.lines.iter().map(command).collect()
}

/// The configs of other programs are accepted by them.
#[test]
#[ignore = "needs nginx, haproxy and promtool; run by tests/run"]
fn configs_of_other_programs_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::fs::copy(root().join("deploy/alerts.yml"), path.join("alerts.yml")).unwrap();
    let mut checked = 0;
    for CodeBlock { page, line, language, lines } in code_blocks() {
        let text = lines.join("\n") + "\n";
        let (text, mut command) = match language.as_str() {
            "nginx" => (format!("events {{}}\nhttp {{\n{text}}}\n"), Command::new("nginx")),
            "haproxy" => {
                let defaults =
                    "defaults\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n";
                (format!("{defaults}{text}"), Command::new("haproxy"))
            }
            "yaml prometheus" => (text, Command::new("promtool")),
            _ => continue,
        };
        let file = path.join("config");
        std::fs::write(&file, text).unwrap();
        match language.as_str() {
            "nginx" => command.arg("-t").arg("-p").arg(path).arg("-c").arg(&file),
            "haproxy" => command.arg("-c").arg("-f").arg(&file),
            _ => command.args(["check", "config"]).arg(&file),
        };
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{page}:{line}: {}", String::from_utf8_lossy(&text));
        checked += 1;
    }
    assert_eq!(checked, 3);
}

/// Every command of the pages succeeds in a system in which only the packages are installed, in the folder of the
/// source.
#[test]
#[ignore = "needs root, systemd-container and cargo-deb; run by tests/run"]
fn commands_in_the_pages_succeed() {
    let built = Command::new(root().join("deploy/package")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let container = Container::start();
    container.succeed(&format!("dpkg --install {SOURCE}/target/debian/*.deb"));
    for program in NOT_IN_CONTAINER {
        container.succeed(&format!("ln --symbolic --force /bin/true /usr/local/bin/{program}"));
    }
    container.succeed(
        "printf '[Unit]\\n[Service]\\nExecStart=/bin/sleep inf\\n[Install]\\nWantedBy=multi-user.target\\n' \
         >/etc/systemd/system/irqbalance.service && systemctl daemon-reload && mkdir -p /etc/tsubame && \
         touch /etc/tsubame/denied",
    );
    // The API of the examples changes an access list, over TCP and the unix socket.
    let config = "control: {socket: /run/tsubame/control.sock}\nhooks:\n  - name: access_list\n    \
                  options: {mode: deny, overrides_file: /var/lib/tsubame/overrides}\n";
    let mut failed = Vec::new();
    for block in code_blocks().iter().filter(|block| block.language == "console") {
        std::fs::write(container.path("/etc/tsubame.yaml"), format!("{DEFAULT_YAML}\n")).unwrap();
        if block.page.contains("control") || block.page.contains("faq") {
            std::fs::write(container.path("/etc/tsubame.yaml"), config).unwrap();
        }
        container.succeed("systemctl restart tsubame");
        // One shell for a block, as for a reader: later commands may use what earlier ones set.
        let script = commands(block).join("\n");
        // The doctor finds something to change in a container.
        let doctor = "tsubame() { command tsubame \"$@\" || [ \"$1\" = doctor ]; }";
        let result = container.run(&format!("cd {SOURCE} && set -e\n{doctor}\n{script}"));
        if result.code != Some(0) {
            failed.push(format!("{}:{}:\n{script}\n{}", block.page, block.line, result.text));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
