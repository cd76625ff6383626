//! Who imports whom: each path of a tree, followed to the module that defines what it names.

use std::collections::HashSet;

use crate::modules::{ModuleIndex, ROOT, Tree, UseItem};

/// A module that needs another one of its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) from: ModuleIndex,
    pub(crate) to: ModuleIndex,
    /// The item of `to`; none if the module itself is named.
    pub(crate) item: Option<String>,
    pub(crate) line: usize,
    /// The path as it is written.
    pub(crate) path: String,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Definition {
    Module(ModuleIndex),
    /// An item of this name, which this module defines.
    ItemOf(ModuleIndex, String),
}

impl Definition {
    fn into_parts(self) -> (ModuleIndex, Option<String>) {
        match self {
            Self::Module(place) => (place, None),
            Self::ItemOf(place, name) => (place, Some(name)),
        }
    }
}

/// All imports between modules that have files of their own.
///
/// Two things that look like imports are none: a module that re-exports what is below it,
/// since that is its front door, and any re-export of the root.
pub(crate) fn of(tree: &Tree) -> Vec<Import> {
    let mut imports = Vec::new();
    for (from, module) in tree.modules.iter().enumerate() {
        let mut add = |to: Option<Definition>, line: usize, path: &[String], reexport: bool| {
            let Some((to, item)) = to.map(Definition::into_parts) else { return };
            if reexport && (from == ROOT || tree.is_below(to, from)) {
                return;
            }
            let (from, to) = (tree.with_file(from), tree.with_file(to));
            if from != to {
                imports.push(Import { from, to, item, line, path: path.join("::") });
            }
        };
        for mention in &module.uses {
            let UseItem { path, reexport, .. } = &mention.what;
            add(PathSearch::new(tree).path(from, path), mention.line, path, *reexport);
        }
        for mention in &module.paths {
            add(PathSearch::new(tree).path(from, &mention.what), mention.line, &mention.what, false);
        }
    }
    imports
}

/// What `path` leads to if it is written in the module `at`; nothing if that is outside of the tree.
pub(crate) fn definition(tree: &Tree, at: ModuleIndex, path: &[String]) -> Option<Definition> {
    PathSearch::new(tree).path(at, path)
}

/// One search, which remembers where it has been: two modules may import all of each other.
struct PathSearch<'a> {
    tree: &'a Tree,
    been: HashSet<(ModuleIndex, Vec<String>)>,
}

impl<'a> PathSearch<'a> {
    fn new(tree: &'a Tree) -> Self {
        Self { tree, been: HashSet::new() }
    }

    /// What `path` leads to if it is written in the module `at`; nothing if that is outside of the tree.
    fn path(&mut self, at: ModuleIndex, path: &[String]) -> Option<Definition> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.below(ROOT, rest),
            "self" => self.below(at, rest),
            "super" => {
                let parent = self.tree.modules[at].parent?;
                // `super::super::x` is `super::x` in the parent.
                if rest.first().is_some_and(|next| next == "super") {
                    self.path(parent, rest)
                } else {
                    self.below(parent, rest)
                }
            }
            "Self" => None,
            _ => self.named(at, path),
        }
    }

    fn below(&mut self, at: ModuleIndex, path: &[String]) -> Option<Definition> {
        let Some(first) = path.first() else { return Some(Definition::Module(at)) };
        // What a macro made is not seen, and is the module's own.
        self.named(at, path).or(Some(Definition::ItemOf(at, first.clone())))
    }

    /// `path`, whose first segment is a name in the module `at`.
    fn named(&mut self, at: ModuleIndex, path: &[String]) -> Option<Definition> {
        if !self.been.insert((at, path.to_vec())) {
            return None;
        }
        let (first, rest) = path.split_first()?;
        let module = &self.tree.modules[at];
        if let Some(child) = module.children.get(first) {
            return self.below(*child, rest);
        }
        if module.items.contains(first) {
            return Some(Definition::ItemOf(at, first.clone()));
        }
        if let Some(mention) = module.uses.iter().find(|mention| mention.what.name.as_ref() == Some(first)) {
            return match self.path(at, &mention.what.path)? {
                Definition::Module(found) => self.below(found, rest),
                item @ Definition::ItemOf(..) => Some(item),
            };
        }
        for mention in module.uses.iter().filter(|mention| mention.what.glob) {
            if let Some(Definition::Module(found)) = self.path(at, &mention.what.path)
                && let Some(found) = self.named(found, path)
            {
                return Some(found);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::tree;

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[&str]) {
        let tree = tree(files);
        let shown =
            |import: &Import| format!("{} -> {}", tree.full_name(import.from), tree.full_name(import.to));
        assert_eq!(of(&tree).iter().map(shown).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_use_of_crate_super_and_self_is_followed() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod c; mod d; use crate::b::B; use self::c::C;"),
            ("a/c.rs", "use super::d::{self, D}; use super::super::b; pub struct C;"),
            ("a/d.rs", "pub struct D;"),
            ("b.rs", "pub struct B;"),
        ];
        let found = [
            "crate::a -> crate::b",
            "crate::a -> crate::a::c",
            "crate::a::c -> crate::a::d",
            "crate::a::c -> crate::a::d",
            "crate::a::c -> crate::b",
        ];
        check(&files, &found);
    }

    #[test]
    fn a_path_in_code_types_attributes_and_macros_is_followed() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("b.rs", "pub struct B; pub fn f() {}"),
            (
                "a.rs",
                "fn one() { crate::b::f() }
                 fn two(_: crate::b::B) {}
                 fn three() { println!(\"{:?}\", [crate::b::f()]) }
                 #[derive(Deserialize)] struct Four { #[serde(default = \"crate::b::f\")] x: u8 }
                 fn five() { use crate::b::f as g; g() }
                 pub(super) fn six() {}",
            ),
        ];
        check(&files, &["crate::a -> crate::b"; 5]);
    }

    #[test]
    fn a_reexport_leads_to_the_module_that_defines_and_is_no_import_of_the_front_door() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use a::Name;"),
            ("a.rs", "mod inner; pub(crate) use inner::Name; pub use inner::*;"),
            ("a/inner.rs", "pub struct Name; pub struct Other;"),
            ("b.rs", "use crate::Name; use crate::a::Name as N; fn f(_: crate::a::Other) { N::new() }"),
        ];
        check(&files, &["crate::b -> crate::a::inner"; 4]);
    }

    #[test]
    fn tests_and_other_crates_are_left_out() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            (
                "a.rs",
                "use std::fmt; use serde::de::Error; use ::b::X; fn f() { fmt::Debug::fmt() }
                 #[cfg(test)] mod tests { use crate::b::B; }
                 #[cfg(all(test, unix))] use crate::b::B;
                 impl X { #[cfg(test)] fn t() { crate::b::f() } }
                 #[cfg(any(test, fuzzing))] fn g() { crate::b::f() }",
            ),
            ("b.rs", "pub struct B;"),
        ];
        check(&files, &[]);
    }

    #[test]
    fn a_cfg_that_can_be_shipped_is_read() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "#[cfg(any(test, feature = \"x\"))] use crate::b::B; #[cfg(not(test))] use crate::b;"),
            ("b.rs", "pub struct B;"),
        ];
        check(&files, &["crate::a -> crate::b"; 2]);
    }

    #[test]
    fn inline_modules_belong_to_their_file() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod inner { use super::A; use crate::b::B; } struct A; fn f() { inner::g() }"),
            ("b.rs", "pub struct B;"),
        ];
        check(&files, &["crate::a -> crate::b"]);
    }

    #[test]
    fn modules_that_import_all_of_each_other_end_the_search() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "pub use crate::b::*; fn f() { Gone::new() }"),
            ("b.rs", "pub use crate::a::*;"),
        ];
        check(&files, &["crate::a -> crate::b", "crate::b -> crate::a"]);
    }

    #[test]
    fn a_module_file_is_found_by_each_of_its_names() {
        let files = [
            ("lib.rs", "mod a; mod b; #[path = \"elsewhere/c.rs\"] mod c;"),
            ("a.rs", "use crate::b::below::X; use crate::c::C;"),
            ("b/mod.rs", "pub mod below;"),
            ("b/below.rs", "pub struct X;"),
            ("elsewhere/c.rs", "pub struct C;"),
        ];
        check(&files, &["crate::a -> crate::b::below", "crate::a -> crate::c"]);
    }
}
