//! The commands that a document prints, so that tests run what readers copy.

use std::path::{Path, PathBuf};

/// The root of the repository, where the documents' commands are run.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").into()
}

/// The commands in the `sh` blocks of a document: one a line, without comments.
pub fn commands(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut commands = Vec::new();
    // In a list they are indented.
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("```") {
            inside = !inside && line == "```sh";
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            commands.push(line.to_owned());
        }
    }
    commands
}

/// A document of the repository.
pub fn document(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between `<!-- name -->` and `<!-- /name -->`.
pub fn section<'a>(text: &'a str, name: &str) -> &'a str {
    let begun = text.split_once(&format!("<!-- {name} -->")).map(|(_, after)| after);
    let ended = begun.and_then(|text| text.split_once(&format!("<!-- /{name} -->")));
    ended.unwrap_or_else(|| panic!("no section {name}")).0
}
