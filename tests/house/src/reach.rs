//! What a crate reaches outside of itself: files, sockets, processes, and another crate's items.
//!
//! Paths are read, not types: a method such as `Path::metadata` is not seen. It opens nothing.

use crate::error::Error;
use crate::modules::Tree;
use crate::workspace::Workspace;

/// What the modules of one package may reach.
pub(crate) struct Reach {
    pub(crate) package: &'static str,
    /// Paths of the standard library and of other crates that only some modules may name,
    /// with those modules. Naming a module that holds such a path counts too.
    pub(crate) only_in: &'static [(&'static str, &'static [&'static str])],
    /// Other packages, with the items of them that may be imported. A path
    /// permits all that is below it.
    pub(crate) items: &'static [(&'static str, &'static [&'static str])],
}

/// Finds paths that `reach` does not permit.
pub(crate) fn too_far(workspace: &Workspace, reach: &Reach) -> Result<Vec<String>, Error> {
    let Some(package) = workspace.package(reach.package) else {
        return Ok(vec![format!("the workspace has no package {}", reach.package)]);
    };
    let mut findings = Vec::new();
    for tree in &package.trees {
        for (place, module) in tree.modules.iter().enumerate() {
            let here = tree.full_name(place);
            let uses =
                module.uses.iter().map(|mention| (mention.line, &mention.what.path, mention.what.glob));
            let paths = module.paths.iter().map(|mention| (mention.line, &mention.what, false));
            for (line, path, glob) in uses.chain(paths) {
                // `::std::fs` is `std::fs`.
                let path = path.strip_prefix(&[String::new()][..]).unwrap_or(path).join("::");
                if is_own(tree, &path) {
                    continue;
                }
                if let Some(why) = reach.refusal(&here, &path, glob) {
                    findings.push(format!("{}:{line}: {path}: {why}", workspace.shown(&module.file)));
                }
            }
        }
    }
    Ok(findings)
}

/// Whether the path starts at a module of this crate's root.
fn is_own(tree: &Tree, path: &str) -> bool {
    let first = path.split("::").next().unwrap_or_default();
    matches!(first, "crate" | "self" | "super" | "Self") || tree.modules[0].children.contains_key(first)
}

impl Reach {
    fn refusal(&self, here: &str, path: &str, glob: bool) -> Option<String> {
        for (limited, modules) in self.only_in {
            let is_module = |module: &&str| here == format!("crate::{module}");
            // `use std::net` and `use std::net::*` give a name to what is below.
            if (is_within(path, limited) || is_within(limited, path)) && !modules.iter().any(is_module) {
                return Some(match modules {
                    [] => format!("no module may name {limited}"),
                    modules => format!("only {} may name {limited}", modules.join(", ")),
                });
            }
        }
        for (package, items) in self.items {
            let name = package.replace('-', "_");
            let Some(item) =
                path.strip_prefix(&name).filter(|rest| rest.is_empty() || rest.starts_with("::"))
            else {
                continue;
            };
            let item = item.trim_start_matches("::");
            let is_listed = items.iter().any(|listed| is_within(item, listed));
            if !is_listed || (glob && item.is_empty()) {
                return Some(format!("not in the list of items that {} imports", self.package));
            }
        }
        None
    }
}

/// Whether `path` is `above` or below it.
fn is_within(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::workspace;

    const REACH: Reach = Reach {
        package: "one",
        only_in: &[("std::fs", &["files"]), ("std::net::TcpStream", &[])],
        items: &[("two-three", &["upstream::Scheme", "config"])],
    };

    #[track_caller]
    fn check(file: &str, text: &str, expected: &[&str]) {
        let lib = "mod files; mod other;";
        let files = [("src/lib.rs", lib), ("src/files.rs", ""), ("src/other.rs", ""), (file, text)];
        assert_eq!(too_far(&workspace(&files), &REACH).unwrap(), expected);
    }

    #[test]
    fn only_a_listed_module_may_name_a_limited_path() {
        check("src/files.rs", "use std::fs::File; fn f() { std::fs::read(x) }", &[]);
        let refused = "only files may name std::fs";
        for (text, path) in [
            ("use std::fs::File;", "std::fs::File"),
            ("use std::{io, fs as f};", "std::fs"),
            ("use ::std::fs::File;", "std::fs::File"),
            ("use std::fs::*;", "std::fs"),
            ("fn f() { std::fs::read(x) }", "std::fs::read"),
            ("fn f() { ::std::fs::read(x) }", "std::fs::read"),
            ("fn f() { println!(\"{:?}\", std::fs::read(x)) }", "std::fs::read"),
        ] {
            check("src/other.rs", text, &[&format!("src/other.rs:1: {path}: {refused}")]);
        }
    }

    #[test]
    fn only_a_limited_path_and_the_modules_that_hold_it_are_refused() {
        check("src/other.rs", "use std::net::IpAddr; fn f(_: std::io::Error) {} mod fs {}", &[]);
        check("src/other.rs", "#[cfg(test)] mod tests { use std::fs; }", &[]);
        check(
            "src/other.rs",
            "use std::net;",
            &["src/other.rs:1: std::net: no module may name std::net::TcpStream"],
        );
    }

    #[test]
    fn only_listed_items_of_another_crate_are_imported() {
        check("src/other.rs", "use two_three::upstream::Scheme; fn f() { two_three::config::parse() }", &[]);
        let refused = "not in the list of items that one imports";
        for (text, path) in [
            ("use two_three::Gateway;", "two_three::Gateway"),
            ("use two_three::upstream::Schemes;", "two_three::upstream::Schemes"),
            ("use two_three::upstream;", "two_three::upstream"),
            ("use two_three as t;", "two_three"),
            ("use two_three::*;", "two_three"),
            ("fn f() { two_three::gateway::Gateway::new() }", "two_three::gateway::Gateway::new"),
        ] {
            check("src/other.rs", text, &[&format!("src/other.rs:1: {path}: {refused}")]);
        }
    }

    #[test]
    fn a_package_that_is_gone_is_a_finding() {
        let reach = Reach { package: "gone", ..REACH };
        let found = too_far(&workspace(&[("src/lib.rs", "")]), &reach).unwrap();
        assert_eq!(found, ["the workspace has no package gone"]);
    }
}
