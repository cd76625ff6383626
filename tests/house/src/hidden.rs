//! Items that a published crate hides from its documentation and still gives to others.

use std::fs;

use crate::error::Error;
use crate::modules::Tree;
use crate::workspace::Workspace;

/// Finds `doc(hidden)` in the packages `packages`.
pub(crate) fn items(workspace: &Workspace, packages: &[&str]) -> Result<Vec<String>, Error> {
    let mut findings = Vec::new();
    for name in packages {
        let Some(package) = workspace.package(name) else {
            findings.push(format!("the workspace has no package {name}"));
            continue;
        };
        for module in package.trees.iter().flat_map(Tree::files) {
            let text = fs::read_to_string(module)
                .map_err(|error| Error(format!("{}: {error}", module.display())))?;
            let hidden = text.lines().enumerate().filter(|(_, line)| line.contains("doc(hidden)"));
            findings.extend(
                hidden.map(|(at, line)| format!("{}:{}: {}", workspace.shown(module), at + 1, line.trim())),
            );
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::kept;

    #[test]
    fn a_hidden_item_is_found_wherever_it_is() {
        let (_folder, workspace) = kept(&[
            ("src/lib.rs", "mod a; mod inline { /// Text.\n    pub struct Open; }"),
            ("src/a.rs", "\n    #[doc(hidden)]\n pub struct Hidden;"),
        ]);
        assert_eq!(items(&workspace, &["one"]).unwrap(), ["src/a.rs:2: #[doc(hidden)]"]);
        assert_eq!(items(&workspace, &["two"]).unwrap(), ["the workspace has no package two"]);
    }
}
