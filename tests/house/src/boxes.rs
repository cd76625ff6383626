//! How many things a reader meets on the top level of the product.

use crate::error::Error;
use crate::modules::ROOT;
use crate::workspace::Workspace;

/// Finds a top level of `src/` of the root package with more than `most` modules.
pub(crate) fn too_many(workspace: &Workspace, most: usize) -> Result<Vec<String>, Error> {
    let Some(package) = workspace.packages.iter().find(|package| package.folder == workspace.root) else {
        return Err(Error("the workspace has no package at its root".into()));
    };
    let mut findings = Vec::new();
    for tree in &package.trees {
        let root = &tree.modules[ROOT];
        let boxes: Vec<&str> = root
            .children
            .iter()
            .filter(|(_, at)| !tree.modules[**at].inline)
            .map(|(name, _)| &name[..])
            .collect();
        if boxes.len() > most {
            let (count, file) = (boxes.len(), workspace.shown(&root.file));
            findings.push(format!("{file}: {count} modules, of at most {most}: {}", boxes.join(", ")));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::workspace;

    #[test]
    fn one_module_more_than_the_limit_is_found() {
        let workspace = workspace(&[
            ("src/lib.rs", "mod a; mod b; mod inline {} #[cfg(test)] mod tests {}"),
            ("src/a.rs", "mod below;"),
            ("src/a/below.rs", ""),
            ("src/b.rs", ""),
        ]);
        assert_eq!(too_many(&workspace, 2).unwrap(), [""; 0]);
        assert_eq!(too_many(&workspace, 1).unwrap(), ["src/lib.rs: 2 modules, of at most 1: a, b"]);
    }
}
