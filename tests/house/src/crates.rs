//! What a plugin author's build pulls in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::cargo::{Metadata, printed_by_cargo};
use crate::error::Error;
use crate::workspace::Workspace;

/// How many crates `package` may bring, itself included.
pub(crate) struct Budget {
    pub(crate) package: &'static str,
    pub(crate) without_default_features: usize,
    pub(crate) with_default_features: usize,
    /// Crates that build C or C++ for others.
    pub(crate) no: &'static [&'static str],
}

/// A crate with its version.
type Crate = (String, String);

/// Finds trees that are larger than `budget`, and crates in them that compile C.
pub(crate) fn over(workspace: &Workspace, budget: &Budget) -> Result<Vec<String>, Error> {
    if workspace.package(budget.package).is_none() {
        return Ok(vec![format!("the workspace has no package {}", budget.package)]);
    }
    let mut findings = Vec::new();
    let sizes = [
        (&["--no-default-features"][..], budget.without_default_features, "without default features"),
        (&[][..], budget.with_default_features, "with default features"),
    ];
    let folders = folders(workspace)?;
    for (arguments, most, how) in sizes {
        let crates = tree(workspace, budget.package, arguments)?;
        if crates.len() > most {
            let names: Vec<String> =
                crates.iter().map(|(name, version)| format!("{name} {version}")).collect();
            let (package, count) = (budget.package, crates.len());
            findings
                .push(format!("{package} {how}: {count} crates, of at most {most}: {}", names.join(", ")));
        }
        for each in &crates {
            let compiles = || folders.get(each).is_some_and(|folder| has_sources(folder));
            if budget.no.contains(&each.0.as_str()) || (each.0.ends_with("-sys") && compiles()) {
                findings.push(format!("{} {how}: {} compiles C", budget.package, each.0));
            }
        }
    }
    Ok(findings)
}

fn tree(workspace: &Workspace, package: &str, more: &[&str]) -> Result<BTreeSet<Crate>, Error> {
    let mut arguments = vec!["tree", "-p", package, "-e", "normal,build", "--prefix", "none"];
    arguments.extend(["--format", "{p}"]);
    arguments.extend(more);
    Ok(crates_of(&printed_by_cargo(&workspace.root, &arguments)?))
}

/// `syn v2.0.1 (proc-macro) (*)`
fn crates_of(printed: &str) -> BTreeSet<Crate> {
    let crate_of = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        Some((name, words.next()?.trim_start_matches('v').to_owned()))
    };
    printed.lines().filter_map(crate_of).collect()
}

/// Where the sources of all crates are.
fn folders(workspace: &Workspace) -> Result<BTreeMap<Crate, PathBuf>, Error> {
    let packages = Metadata::of_all(&workspace.root)?.packages.into_iter();
    Ok(packages
        .map(|package| {
            let folder = package.folder();
            ((package.name, package.version), folder)
        })
        .collect())
}

/// Whether a file below `folder` is one that a C compiler or an assembler reads.
fn has_sources(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        let named =
            |ending: &std::ffi::OsStr| ["c", "cc", "cpp", "cxx", "S", "asm"].iter().any(|c| ending == *c);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            has_sources(&path)
        } else {
            path.extension().is_some_and(named)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::{kept, manifest};

    fn budget(without_default_features: usize, with_default_features: usize) -> Budget {
        Budget { package: "one", without_default_features, with_default_features, no: &["cc"] }
    }

    fn check(budget: &Budget, expected: &[&str]) {
        let more = "[workspace]\nmembers = [\"c-sys\", \"raw-sys\", \"cc\", \"test\"]\n\
            [features]\ndefault = [\"dep:c-sys\"]\n\
            [dependencies]\nc-sys = { path = \"c-sys\", optional = true }\nraw-sys = { path = \"raw-sys\" }\n\
            [build-dependencies]\ncc = { path = \"cc\" }\n[dev-dependencies]\ntest = { path = \"test\" }\n";
        let (_folder, workspace) = kept(&[
            ("Cargo.toml", &(manifest("one") + more)),
            ("src/lib.rs", ""),
            ("build.rs", "fn main() {}"),
            ("c-sys/Cargo.toml", &manifest("c-sys")),
            ("c-sys/src/lib.rs", ""),
            ("c-sys/vendor/x.c", ""),
            ("raw-sys/Cargo.toml", &manifest("raw-sys")),
            ("raw-sys/src/lib.rs", ""),
            ("cc/Cargo.toml", &manifest("cc")),
            ("cc/src/lib.rs", ""),
            ("test/Cargo.toml", &manifest("test")),
            ("test/src/lib.rs", ""),
        ]);
        assert_eq!(over(&workspace, budget).unwrap(), expected);
    }

    #[test]
    fn a_tree_within_its_budget_is_no_finding() {
        check(
            &Budget { no: &[], without_default_features: 3, with_default_features: 4, ..budget(0, 0) },
            &["one with default features: c-sys compiles C"],
        );
    }

    #[test]
    fn each_crate_too_many_and_each_that_compiles_c_is_found() {
        let expected = [
            "one without default features: 3 crates, of at most 2: cc 0.1.0, one 0.1.0, raw-sys 0.1.0",
            "one without default features: cc compiles C",
            "one with default features: 4 crates, of at most 3: c-sys 0.1.0, cc 0.1.0, one 0.1.0, raw-sys 0.1.0",
            "one with default features: c-sys compiles C",
            "one with default features: cc compiles C",
        ];
        check(&budget(2, 3), &expected);
    }

    #[test]
    fn crates_are_counted_once_each() {
        let printed = "one v0.1.0 (/x)\nsyn v2.0.1\nsyn v1.0.9\nd v1.0.0 (proc-macro)\nsyn v2.0.1 (*)\n\n";
        assert_eq!(crates_of(printed).len(), 4);
    }

    #[test]
    fn a_package_that_is_gone_is_a_finding() {
        let (_folder, workspace) = kept(&[("src/lib.rs", "")]);
        let budget = Budget { package: "two", ..budget(1, 1) };
        assert_eq!(over(&workspace, &budget).unwrap(), ["the workspace has no package two"]);
    }
}
