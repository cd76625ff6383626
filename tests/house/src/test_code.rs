//! Production code that imports test code.

use crate::error::Error;
use crate::imports;
use crate::modules::{ModuleIndex, Tree};
use crate::workspace::{Package, Workspace};

/// Finds imports of modules with one of the names `modules`, and dependencies on one of `packages`.
///
/// Code behind `cfg(test)` is not looked at: the compiler leaves it out of production.
pub(crate) fn imported(
    workspace: &Workspace,
    modules: &[&str],
    packages: &[&str],
) -> Result<Vec<String>, Error> {
    let mut findings = Vec::new();
    for package in &workspace.packages {
        if packages.contains(&package.name.as_str()) {
            continue;
        }
        for dependency in package.dependencies.iter().filter(|name| packages.contains(&name.as_str())) {
            findings.push(format!("{} depends on {dependency} outside of its tests", package.name));
        }
        for tree in &package.trees {
            let is_test = |place: ModuleIndex| is_test_code(tree, place, modules);
            for import in imports::of(tree) {
                if is_test(import.to) && !is_test(import.from) {
                    let file = workspace.shown(&tree.modules[import.from].file);
                    findings.push(format!("{file}:{}: {}", import.line, import.path));
                }
            }
            findings.extend(of_other_crates(workspace, package, tree, modules));
        }
    }
    Ok(findings)
}

fn is_test_code(tree: &Tree, place: ModuleIndex, modules: &[&str]) -> bool {
    let module = &tree.modules[place];
    modules.contains(&module.name.as_str())
        || module.parent.is_some_and(|parent| is_test_code(tree, parent, modules))
}

/// `apisix_plugin_runner::testing::Gateway` in another package.
fn of_other_crates(workspace: &Workspace, package: &Package, tree: &Tree, modules: &[&str]) -> Vec<String> {
    let others: Vec<String> = workspace
        .packages
        .iter()
        .map(|other| other.name.replace('-', "_"))
        // A program imports the library of its own package under the package's name.
        .filter(|name| *name != package.name.replace('-', "_") || tree.modules[0].file.ends_with("main.rs"))
        .collect();
    let mut findings = Vec::new();
    for (place, module) in tree.modules.iter().enumerate() {
        if is_test_code(tree, place, modules) {
            continue;
        }
        let uses = module.uses.iter().map(|mention| (mention.line, &mention.what.path));
        let paths = module.paths.iter().map(|mention| (mention.line, &mention.what));
        for (line, path) in uses.chain(paths) {
            let [first, rest @ ..] = &path[..] else { continue };
            if others.contains(first) && rest.iter().any(|name| modules.contains(&name.as_str())) {
                findings.push(format!("{}:{line}: {}", workspace.shown(&module.file), path.join("::")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::{manifest, workspace};

    #[test]
    fn an_import_is_found_within_a_crate_and_from_another_one() {
        let more = "[workspace]\nmembers = [\"two\", \"support\"]\n\
            [dependencies]\ntwo = { path = \"two\" }\n\
            [dev-dependencies]\nsupport = { path = \"support\" }\n";
        let in_two = manifest("two") + "[dependencies]\nsupport = { path = \"../support\" }\n";
        let workspace = workspace(&[
            ("Cargo.toml", &(manifest("one") + more)),
            ("src/lib.rs", "mod call;\npub mod testing;\n#[cfg(test)] mod tests { use two::testing::X; }"),
            ("src/call.rs", "use crate::testing::Gateway;\nfn f() { two::testing::f() }"),
            ("src/testing.rs", "mod exchange; pub struct Gateway; use exchange::E;"),
            ("src/testing/exchange.rs", "use super::Gateway; pub struct E;"),
            ("two/Cargo.toml", &in_two),
            ("two/src/lib.rs", "pub mod testing { pub fn f() {} }"),
            ("support/Cargo.toml", &manifest("support")),
            ("support/src/lib.rs", ""),
        ]);
        let mut found = imported(&workspace, &["testing"], &["support"]).unwrap();
        found.sort();
        let expected = [
            "src/call.rs:1: crate::testing::Gateway",
            "src/call.rs:2: two::testing::f",
            "two depends on support outside of its tests",
        ];
        assert_eq!(found, expected);
    }
}
