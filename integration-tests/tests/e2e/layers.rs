//! The layer rules of the house, checked by reading the sources: what the compiler cannot see.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A source file: its path from the root of the repository, and its code without comments.
struct Source {
    path: String,
    lines: usize,
    code: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The sources below these directories.
fn sources(dirs: &[&str]) -> Vec<Source> {
    let mut files = Vec::new();
    for dir in dirs {
        rust_files(&root().join(dir), &mut files);
    }
    let read = files.into_iter().map(|file| {
        let text = std::fs::read_to_string(&file).unwrap();
        let code =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        let path = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        Source { path, lines: text.lines().count(), code }
    });
    read.collect()
}

fn product() -> Vec<Source> {
    sources(&["proto/src", "common/src", "control-plane/src", "node-agent/src"])
}

/// Whether a name stands in the code as a word of its own.
fn names(code: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name)
        .any(|(at, _)| !code[..at].ends_with(is_word) && !code[at + name.len()..].starts_with(is_word))
}

/// The code without its tests, which may use what helps to write them.
fn without_tests(source: &Source) -> &str {
    if source.path.ends_with("tests.rs") || source.path.contains("/tests/") {
        ""
    } else {
        source.code.split("#[cfg(test)]").next().unwrap_or_default()
    }
}

/// The paths of a file's `use` declarations: the text between `use` and `;`.
fn imports(code: &str) -> Vec<&str> {
    let starts = code.match_indices("use ").filter(|(at, _)| {
        let line = code[..*at].rsplit('\n').next().unwrap_or_default();
        line.is_empty() || (line.starts_with("pub") && line.ends_with(' '))
    });
    starts.filter_map(|(at, word)| code[at + word.len()..].split(';').next()).collect()
}

/// `name` may only stand in files whose path begins with one of `homes`.
fn only_in(sources: &[Source], name: &str, homes: &[&str]) -> Vec<String> {
    let strangers = sources
        .iter()
        .filter(|s| names(without_tests(s), name) && !homes.iter().any(|home| s.path.starts_with(home)));
    strangers.map(|s| format!("{} names {name}, which belongs in {homes:?}", s.path)).collect()
}

#[test]
fn names_stay_where_they_belong() {
    let sources = product();
    let mut broken = Vec::new();
    broken.extend(only_in(&sources, "sea_orm", &["control-plane/src/store"]));
    broken.extend(only_in(&sources, "sqlx", &["control-plane/src/store"]));
    broken.extend(only_in(&sources, "bollard", &["node-agent/src/runtime/docker"]));
    broken.extend(only_in(
        &sources,
        "carrel_proto",
        &[
            "common/src/wire",
            "common/src/serve.rs",
            "control-plane/src/grpc",
            "control-plane/src/sessions",
            "control-plane/src/http",
            "control-plane/src/run.rs",
            "node-agent/src/session",
            "node-agent/src/enroll",
        ],
    ));
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn tonics_status_and_code_are_chosen_at_the_edge_only() {
    let homes = [
        "control-plane/src/grpc",
        "control-plane/src/sessions",
        "common/src/serve.rs",
        "node-agent/src/session",
        "node-agent/src/enroll",
    ];
    let sources = product();
    let uses_them = |s: &Source| {
        let imported = imports(&s.code).into_iter().filter(|import| import.starts_with("tonic"));
        imported.into_iter().any(|import| names(import, "Status") || names(import, "Code"))
            || ["tonic::Status", "tonic::Code"].iter().any(|name| names(&s.code, name))
    };
    let strangers: Vec<_> = sources
        .iter()
        .filter(|s| uses_them(s) && !homes.iter().any(|home| s.path.starts_with(home)))
        .map(|s| &s.path)
        .collect();
    assert!(strangers.is_empty(), "{strangers:?} choose a gRPC code");
}

#[test]
fn pure_parts_import_nothing_that_acts() {
    let allowed = [
        "std::",
        "time::",
        "thiserror::",
        "serde::",
        "serde_json::",
        "carrel_common::id",
        "carrel_common::image",
        "carrel_common::model",
        "self::",
        "super::",
        "crate::",
    ];
    let mut broken = Vec::new();
    for source in sources(&["control-plane/src/domain", "node-agent/src/reconcile"]) {
        let code = without_tests(&source);
        for import in imports(code) {
            if !allowed.iter().any(|start| import.starts_with(start)) {
                broken.push(format!("{} imports {import}", source.path));
            }
        }
        for acting in ["async", "await", "tokio", "tracing", "std::fs", "std::net", "std::process"] {
            if names(code, acting) {
                broken.push(format!("{} names {acting}", source.path));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn layers_call_downwards_only() {
    // Which of the crate's modules the files of a layer may not name.
    let forbidden: [(&str, &[&str]); 8] = [
        ("control-plane/src/domain", &["app", "store", "grpc", "http", "sessions", "tasks", "run", "config"]),
        ("control-plane/src/store", &["app", "grpc", "http", "sessions", "tasks", "run", "config"]),
        ("control-plane/src/app", &["grpc", "http", "sessions", "tasks", "run", "config"]),
        ("control-plane/src/grpc", &["store", "tasks", "run", "config"]),
        ("control-plane/src/sessions", &["store", "tasks", "run", "config"]),
        ("control-plane/src/tasks", &["store", "grpc", "http", "run", "config"]),
        ("node-agent/src/runtime", &["session", "driver", "run", "config", "commands"]),
        ("node-agent/src/storage", &["session", "driver", "runtime", "run", "config", "commands"]),
    ];
    let mut broken = Vec::new();
    for (layer, modules) in forbidden {
        for source in sources(&[layer]) {
            for module in modules {
                if names(without_tests(&source), &format!("crate::{module}")) {
                    broken.push(format!("{} names crate::{module}", source.path));
                }
            }
        }
    }
    let sideways = [
        ("control-plane/src", "node_agent"),
        ("node-agent/src", "control_plane"),
        ("common/src", "control_plane"),
        ("common/src", "node_agent"),
    ];
    for (dir, other) in sideways {
        let uses = |s: &Source| imports(&s.code).iter().any(|import| import.starts_with(other));
        broken.extend(
            sources(&[dir]).iter().filter(|s| uses(s)).map(|s| format!("{} imports {other}", s.path)),
        );
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_is_named_by_a_mod() {
    let sources = sources(&[
        "proto/src",
        "common/src",
        "control-plane/src",
        "node-agent/src",
        "integration-tests/src",
        "integration-tests/tests/e2e",
    ]);
    let is_root = |name: &str| matches!(name, "lib.rs" | "main.rs");
    let mut orphans = Vec::new();
    for source in &sources {
        let path = Path::new(&source.path);
        let (dir, file) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
        if is_root(file) {
            continue;
        }
        // The file that should name it, and by which name.
        let (module, dir) = match file {
            "mod.rs" => (dir.file_name().unwrap().to_str().unwrap(), dir.parent().unwrap()),
            _ => (file.trim_end_matches(".rs"), dir),
        };
        let parents = [dir.join("mod.rs"), dir.join("lib.rs"), dir.join("main.rs"), dir.with_extension("rs")];
        let is_named = sources.iter().any(|parent| {
            parents.iter().any(|p| p == Path::new(&parent.path))
                && names(&parent.code, &format!("mod {module}"))
        });
        if !is_named {
            orphans.push(&source.path);
        }
    }
    assert!(orphans.is_empty(), "no mod names {orphans:?}");
}

#[test]
fn files_are_small() {
    let all =
        sources(&["proto/src", "common/src", "control-plane/src", "node-agent/src", "integration-tests"]);
    let large: Vec<_> =
        all.iter().filter(|s| s.lines > 500).map(|s| format!("{}: {}", s.path, s.lines)).collect();
    assert!(large.is_empty(), "500 lines are a split: {large:?}");
}

/// The types of events that the contract names: in its comment each begins with its kind, or with a dot to mean the last kind named.
fn documented_types() -> BTreeSet<String> {
    let proto = std::fs::read_to_string(root().join("proto/carrel/v1/event_service.proto")).unwrap();
    let comment = proto.split("// What happened: ").nth(1).unwrap().split("string type").next().unwrap();
    let mut kind = String::new();
    let mut types = BTreeSet::new();
    for name in comment.split('`').skip(1).step_by(2) {
        match name.strip_prefix('.') {
            Some(rest) => types.insert(format!("{kind}.{rest}")),
            None => {
                kind = name.split('.').next().unwrap().to_owned();
                types.insert(name.to_owned())
            }
        };
    }
    types
}

#[test]
fn every_type_of_event_is_in_the_contract() {
    // Those of policies are told from their fields by where they are made.
    let is_type = |text: &&str| {
        let kinds = ["workspace.", "node.", "orphan.", "store."];
        let rest = kinds.iter().find_map(|kind| text.strip_prefix(kind));
        rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let mut written = BTreeSet::new();
    let layers = [
        "control-plane/src/app",
        "control-plane/src/commands",
        "control-plane/src/domain",
        "control-plane/src/store",
    ];
    for source in sources(&layers) {
        if source.path.ends_with("tests.rs") {
            continue;
        }
        written.extend(source.code.split('"').filter(is_type).map(str::to_owned));
        let made = source.code.split("Entry::new(").skip(1).map(str::trim_start);
        let literal = made.filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
        written.extend(literal.map(str::to_owned));
    }
    assert_eq!(written, documented_types());
}

/// What stands between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_way_of_one_start_leads_by_functions_that_are_there() {
    let way = std::fs::read_to_string(root().join("docs/one-start.md")).unwrap();
    let mut steps = 0;
    for row in way.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let [_, files, functions] = cells[..] else { panic!("{row}") };
        // Only the first of several names its folder.
        let mut folder = Path::new("");
        let mut code = String::new();
        for file in quoted(files) {
            let named = Path::new(file);
            let path = if named.components().count() > 1 { named.to_owned() } else { folder.join(named) };
            code += &std::fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            folder = if named.components().count() > 1 { named.parent().unwrap() } else { folder };
        }
        for function in quoted(functions) {
            assert!(code.contains(&format!("fn {function}")), "no {function} in {files}");
        }
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
}
