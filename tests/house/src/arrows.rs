//! Which box of the product may import which.

use std::collections::BTreeSet;
use std::fs;

use crate::error::Error;
use crate::imports;
use crate::modules::{ModuleIndex, ROOT, Tree};
use crate::workspace::Workspace;

/// A module on the top level of the product, and the modules outside of it that it may import.
pub(crate) struct BoxArrows {
    pub(crate) name: &'static str,
    /// Paths below the crate, of modules or of single items. A path permits all that is below it.
    pub(crate) imports: &'static [&'static str],
}

/// Finds boxes that `table` does not list, imports that it does not permit, and permissions
/// that nothing uses. The page `page` shows the same table.
pub(crate) fn wrong(workspace: &Workspace, table: &[BoxArrows], page: &str) -> Result<Vec<String>, Error> {
    let Some(package) = workspace.packages.iter().find(|package| package.folder == workspace.root) else {
        return Err(Error("the workspace has no package at its root".into()));
    };
    let mut findings = Vec::new();
    for tree in package.trees.iter().filter(|tree| !tree.modules[ROOT].children.is_empty()) {
        findings.extend(boxes_that_differ(workspace, tree, table));
        findings.extend(arrows_that_differ(workspace, tree, table));
    }
    let text =
        fs::read_to_string(workspace.root.join(page)).map_err(|error| Error(format!("{page}: {error}")))?;
    findings.extend(
        table
            .iter()
            .filter(|row| !is_shown(row, &text))
            .map(|row| format!("{page}: no row of `{}` that ends with its imports, {}", row.name, cell(row))),
    );
    Ok(findings)
}

fn boxes_that_differ(workspace: &Workspace, tree: &Tree, table: &[BoxArrows]) -> Vec<String> {
    let file = workspace.shown(&tree.modules[ROOT].file);
    let found: BTreeSet<&str> = tree.modules[ROOT].children.keys().map(String::as_str).collect();
    let listed: BTreeSet<&str> = table.iter().map(|row| row.name).collect();
    let unlisted = found.difference(&listed).map(|name| format!("{file}: `{name}` is not in the table"));
    let gone = listed.difference(&found).map(|name| format!("{file}: `{name}` is in the table and is gone"));
    unlisted.chain(gone).collect()
}

fn arrows_that_differ(workspace: &Workspace, tree: &Tree, table: &[BoxArrows]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut used = BTreeSet::new();
    for import in imports::of(tree) {
        let (Some(from), Some(to)) = (box_of(tree, import.from), box_of(tree, import.to)) else { continue };
        let Some(row) = table.iter().find(|row| row.name == tree.modules[from].name) else { continue };
        if from == to {
            continue;
        }
        let module = tree.full_name(import.to);
        let imported = import.item.as_ref().map_or(module.clone(), |item| format!("{module}::{item}"));
        match row.imports.iter().find(|permitted| permits(permitted, &imported)) {
            Some(permitted) => {
                used.insert((row.name, *permitted));
            }
            None => findings.push(format!(
                "{}:{}: `{}` may not import {}",
                workspace.shown(&tree.modules[import.from].file),
                import.line,
                row.name,
                import.path
            )),
        }
    }
    for row in table {
        let unused = row.imports.iter().filter(|permitted| !used.contains(&(row.name, **permitted)));
        findings.extend(unused.map(|permitted| format!("`{}` does not import {permitted}", row.name)));
    }
    findings
}

/// The child of the root that `place` is in; none for the root, which assembles.
fn box_of(tree: &Tree, place: ModuleIndex) -> Option<ModuleIndex> {
    let parent = tree.modules[place].parent?;
    if parent == ROOT { Some(place) } else { box_of(tree, parent) }
}

fn permits(permitted: &str, imported: &str) -> bool {
    let rest = imported.strip_prefix("crate::").and_then(|path| path.strip_prefix(permitted));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn is_shown(row: &BoxArrows, page: &str) -> bool {
    let (begin, end) = (format!("| `{}` |", row.name), format!("| {} |", cell(row)));
    page.lines().any(|line| line.starts_with(&begin) && line.ends_with(&end))
}

fn cell(row: &BoxArrows) -> String {
    let names: Vec<String> = row.imports.iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::kept;

    const TABLE: &[BoxArrows] = &[
        BoxArrows { name: "a", imports: &["b::inner", "c::C"] },
        BoxArrows { name: "b", imports: &["c"] },
        BoxArrows { name: "c", imports: &[] },
    ];

    const PAGE: &str = "| `a` | job | `b::inner`, `c::C` |\n| `b` | job | `c` |\n| `c` | job | nothing |\n";

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[&str]) {
        let good = [
            ("src/lib.rs", "mod a; mod b; mod c; use a::A;"),
            ("src/a.rs", "mod deep; pub struct A;"),
            ("src/a/deep.rs", "use super::A; use crate::b::inner::I; use crate::c::C;"),
            ("src/b.rs", "pub mod inner; pub struct B; use crate::c::C;"),
            ("src/b/inner.rs", "pub struct I;"),
            ("src/c.rs", "pub struct C; pub struct D;"),
            ("page.md", PAGE),
        ];
        let (_folder, workspace) = kept(&[&good, files].concat());
        assert_eq!(wrong(&workspace, TABLE, "page.md").unwrap(), expected);
    }

    #[test]
    fn a_tree_that_is_equal_to_the_table_is_no_finding() {
        check(&[], &[]);
        // The root assembles, and tests import what they like.
        check(&[("src/c.rs", "pub struct C; #[cfg(test)] mod tests { use crate::a::A; }")], &[]);
    }

    #[test]
    fn an_import_that_the_table_does_not_permit_is_found() {
        check(
            &[("src/c.rs", "pub struct C;\nfn f() { crate::a::A }")],
            &["src/c.rs:2: `c` may not import crate::a::A"],
        );
        check(
            &[("src/a/deep.rs", "use crate::{b::{inner::I, B}, c::C};")],
            &["src/a/deep.rs:1: `a` may not import crate::b::B"],
        );
        // A single item is permitted, and neither its neighbour nor its module.
        check(
            &[("src/a/deep.rs", "use crate::b::inner::I; use crate::c::{C, D};\nuse crate::c;")],
            &[
                "src/a/deep.rs:1: `a` may not import crate::c::D",
                "src/a/deep.rs:2: `a` may not import crate::c",
            ],
        );
    }

    #[test]
    fn a_permission_that_nothing_uses_is_found() {
        check(&[("src/b.rs", "pub mod inner;")], &["`b` does not import c"]);
    }

    #[test]
    fn a_box_that_is_new_or_gone_is_found() {
        let lib = "mod a; mod b; mod d;";
        let a = "use crate::b::inner::I;";
        check(
            &[("src/lib.rs", lib), ("src/d.rs", ""), ("src/a/deep.rs", a), ("src/b.rs", "pub mod inner;")],
            &[
                "src/lib.rs: `d` is not in the table",
                "src/lib.rs: `c` is in the table and is gone",
                "`a` does not import c::C",
                "`b` does not import c",
            ],
        );
    }

    #[test]
    fn a_page_that_shows_another_table_is_found() {
        check(
            &[("page.md", "| `a` | job | `b` |\n| `b` | job | `c` |\n| `c` | job | nothing |\n")],
            &["page.md: no row of `a` that ends with its imports, `b::inner`, `c::C`"],
        );
    }
}
