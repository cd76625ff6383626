//! Public items whose documentation has no example.

use std::collections::BTreeSet;

use crate::error::Error;
use crate::imports::{Definition, definition};
use crate::modules::{DocumentedItem, Mention, ModuleIndex, ROOT, Tree, UseItem};
use crate::workspace::Workspace;

/// Finds each type and function that other crates can name in the libraries of `packages`,
/// and whose documentation has no example that rustdoc compiles.
pub(crate) fn missing(workspace: &Workspace, packages: &[&str]) -> Result<Vec<String>, Error> {
    let mut findings = Vec::new();
    for name in packages {
        let trees = workspace.package(name).map(|package| &package.trees[..]).unwrap_or_default();
        let Some(tree) = trees.iter().find(|tree| tree.modules[ROOT].file.ends_with("lib.rs")) else {
            findings.push(format!("the workspace has no library {name}"));
            continue;
        };
        let mut surface =
            PublicSurface { tree, been: BTreeSet::new(), findings: BTreeSet::new(), has_items: false };
        surface.add_module(ROOT);
        // A rule over an empty list would always hold.
        if !surface.has_items {
            findings.push(format!("{name} has no public item"));
        }
        for (place, line, name) in surface.findings {
            let file = workspace.shown(&tree.modules[place].file);
            findings.push(format!("{file}:{line}: {name} has no example"));
        }
    }
    Ok(findings)
}

/// What other crates see of a library.
struct PublicSurface<'a> {
    tree: &'a Tree,
    been: BTreeSet<ModuleIndex>,
    /// Module, line and name.
    findings: BTreeSet<(ModuleIndex, usize, &'a str)>,
    has_items: bool,
}

impl<'a> PublicSurface<'a> {
    fn add_module(&mut self, at: ModuleIndex) {
        if !self.been.insert(at) {
            return;
        }
        let module = &self.tree.modules[at];
        for item in &module.public_items {
            self.add_item(at, item);
        }
        for child in module.children.values().filter(|child| self.tree.modules[**child].public) {
            self.add_module(*child);
        }
        for mention in &module.uses {
            self.add_reexport(at, mention);
        }
    }

    fn add_item(&mut self, at: ModuleIndex, item: &'a Mention<DocumentedItem>) {
        let DocumentedItem { name, docs } = &item.what;
        self.has_items = true;
        if !has_example(docs) {
            self.findings.insert((at, item.line, name));
        }
    }

    /// An item of another crate is that crate's to document.
    fn add_reexport(&mut self, at: ModuleIndex, mention: &'a Mention<UseItem>) {
        let UseItem { path, public_docs: Some(docs), .. } = &mention.what else { return };
        let Some(name) = path.last() else { return };
        match definition(self.tree, at, path) {
            Some(Definition::Module(module)) => self.add_module(module),
            // rustdoc shows the text of the `use` above that of the item.
            Some(Definition::ItemOf(module, _)) if !has_example(docs) => {
                let defined = &self.tree.modules[module];
                if let Some(item) = defined.public_items.iter().find(|item| item.what.name == *name) {
                    self.add_item(module, item);
                } else if !defined.items.contains(name) {
                    // Generated code is not read.
                    self.has_items = true;
                    self.findings.insert((at, mention.line, name));
                }
            }
            Some(Definition::ItemOf(..)) => self.has_items = true,
            None => {}
        }
    }
}

/// Whether a block of code is among the text that rustdoc compiles as an example.
fn has_example(docs: &str) -> bool {
    let mut fences = docs.lines().filter_map(|line| line.trim_start().strip_prefix("```"));
    // Every second fence ends a block.
    while let Some(kind) = fences.next() {
        if is_compiled(kind) {
            return true;
        }
        fences.next();
    }
    false
}

/// Whether rustdoc compiles a block of this kind, and expects it to compile.
fn is_compiled(kind: &str) -> bool {
    let is_rust =
        |word: &str| matches!(word, "" | "rust" | "no_run" | "should_panic") || word.starts_with("edition");
    kind.split(',').map(str::trim).all(is_rust)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::workspace;

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[&str]) {
        assert_eq!(missing(&workspace(files), &["one"]).unwrap(), expected);
    }

    #[test]
    fn each_kind_of_public_item_without_an_example_is_found() {
        let items = "/// Text.\npub struct A;\npub enum B {}\npub trait C {}\npub type D = A;\npub fn f() {}\n\
            pub const G: u8 = 1;\nstruct H;\npub(crate) struct I;\n#[doc(hidden)] pub struct J;";
        let found = ["2: A", "3: B", "4: C", "5: D", "6: f"];
        let found = found.map(|found| format!("src/lib.rs:{found} has no example"));
        check(&[("src/lib.rs", items)], &found.each_ref().map(|found| &found[..]));
    }

    #[test]
    fn an_example_is_a_block_that_is_compiled() {
        let of = |block: &str| format!("/// Text.\n///\n/// {block}\n/// f();\n/// ```\npub struct A;");
        for block in ["```", "```no_run", "```rust,should_panic", "```edition2024"] {
            check(&[("src/lib.rs", &of(block))], &[]);
        }
        for block in ["```ignore", "```text", "```rust,ignore", "```compile_fail", "f();\n/// ```json"] {
            let line = 5 + block.lines().count();
            check(&[("src/lib.rs", &of(block))], &[&format!("src/lib.rs:{line}: A has no example")]);
        }
        // The end of a block is no beginning.
        check(
            &[("src/lib.rs", "/// ```json\n/// {}\n/// ```\n/// text\npub struct A;")],
            &["src/lib.rs:5: A has no example"],
        );
    }

    #[test]
    fn only_items_reachable_from_outside_count() {
        let files = [
            (
                "src/lib.rs",
                "mod a; pub mod b; mod c; pub use a::A; pub(crate) use a::Hidden; pub use c as d; mod e; pub use e::*;
                 #[cfg(test)] pub mod tests { pub struct Test; }
                 pub use std::fmt::Debug;",
            ),
            ("src/a.rs", "pub struct A; pub struct Hidden; pub struct Private;"),
            ("src/b.rs", "pub struct B; mod below { pub struct Below; }"),
            ("src/c.rs", "pub struct C;"),
            ("src/e.rs", "pub struct E; struct Own;"),
        ];
        let found = [
            "src/a.rs:1: A has no example",
            "src/b.rs:1: B has no example",
            "src/c.rs:1: C has no example",
            "src/e.rs:1: E has no example",
        ];
        check(&files, &found);
    }

    #[test]
    fn a_reexport_of_generated_code_brings_its_own_example() {
        let generated = "// automatically generated by flatc\npub struct Code;";
        let reexport = "pub use crate::generated::Code;";
        let files =
            [("src/lib.rs", &format!("mod generated; {reexport}")[..]), ("src/generated.rs", generated)];
        check(&files, &["src/lib.rs:1: Code has no example"]);
        let documented = format!("mod generated;\n/// ```\n/// f();\n/// ```\n{reexport}");
        check(&[("src/lib.rs", &documented), ("src/generated.rs", generated)], &[]);
    }

    #[test]
    fn a_package_without_a_library_or_a_public_item_is_a_finding() {
        check(&[("src/main.rs", "fn main() {}")], &["the workspace has no library one"]);
        check(&[("src/lib.rs", "pub(crate) struct A;")], &["one has no public item"]);
    }
}
