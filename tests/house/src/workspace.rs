//! The packages of the workspace, as Cargo names them.

use std::path::{Path, PathBuf};

use crate::cargo::{Metadata, MetadataPackage, MetadataTarget};
use crate::error::Error;
use crate::modules::Tree;

/// All packages of the workspace, with the modules of their libraries and programs.
#[derive(Debug)]
pub struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) packages: Vec<Package>,
}

#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// The folder of `Cargo.toml`.
    pub(crate) folder: PathBuf,
    /// Names of the packages that its library or programs are built with.
    pub(crate) dependencies: Vec<String>,
    /// One for the library and one for each program.
    pub(crate) trees: Vec<Tree>,
}

impl Workspace {
    /// Reads the workspace of this source tree.
    pub fn of_this_tree() -> Result<Self, Error> {
        Self::read(Path::new(env!("CARGO_MANIFEST_DIR")))
    }

    /// Reads the workspace that `folder` is in.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let metadata = Metadata::of_members(folder)?;
        let packages = metadata.packages.into_iter().map(Package::read).collect::<Result<Vec<_>, _>>()?;
        // A rule over an empty list would always hold.
        if packages.iter().all(|package| package.trees.is_empty()) {
            return Err(Error(format!("{}: no package with a library or a program", folder.display())));
        }
        Ok(Self { root: metadata.workspace_root, packages })
    }

    pub(crate) fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }

    /// `path` as it is written in a finding: relative to the workspace.
    pub(crate) fn shown<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

impl Package {
    fn read(package: MetadataPackage) -> Result<Self, Error> {
        let folder = package.folder();
        let built = |target: &&MetadataTarget| {
            target.kind.iter().any(|kind| matches!(kind.as_str(), "lib" | "rlib" | "proc-macro" | "bin"))
        };
        let trees = package
            .targets
            .iter()
            .filter(built)
            .map(|target| Tree::read(&target.src_path))
            .collect::<Result<_, _>>()?;
        let dependencies = package
            .dependencies
            .into_iter()
            .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
            .map(|dependency| dependency.name)
            .collect();
        Ok(Self { name: package.name, folder, dependencies, trees })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::modules::ROOT;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    /// The tree below the `lib.rs` among `files`.
    pub(crate) fn tree(files: &[(&str, &str)]) -> Tree {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), files);
        Tree::read(&folder.path().join("lib.rs")).unwrap()
    }

    /// A workspace of `files`. Without a `Cargo.toml` at its top it has one package, `one`.
    pub(crate) fn workspace(files: &[(&str, &str)]) -> Workspace {
        kept(files).1
    }

    /// [`workspace`], with the folder that holds its files.
    pub(crate) fn kept(files: &[(&str, &str)]) -> (tempfile::TempDir, Workspace) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[("Cargo.toml", &manifest("one"))]);
        write(folder.path(), files);
        let mut workspace = Workspace::read(folder.path()).unwrap();
        // What Cargo says has no symbolic link in it.
        workspace.root = folder.path().canonicalize().unwrap();
        (folder, workspace)
    }

    pub(crate) fn manifest(name: &str) -> String {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n")
    }

    #[test]
    fn every_package_is_read_with_its_library_and_programs() {
        let more = "[workspace]\nmembers = [\"two\"]\n[dependencies]\ntwo = { path = \"two\" }\n";
        let workspace = workspace(&[
            ("Cargo.toml", &(manifest("one") + more)),
            ("src/lib.rs", "mod a;"),
            ("src/a.rs", ""),
            ("src/main.rs", "fn main() {}"),
            ("two/Cargo.toml", &manifest("two")),
            ("two/src/lib.rs", ""),
        ]);
        let one = workspace.package("one").unwrap();
        assert_eq!(one.trees.len(), 2);
        assert_eq!(one.dependencies, ["two"]);
        assert_eq!(one.trees[0].modules.len() + one.trees[1].modules.len(), 3);
        let two = workspace.package("two").unwrap();
        assert_eq!(workspace.shown(&two.trees[0].modules[ROOT].file).to_string(), "two/src/lib.rs");
    }

    #[test]
    fn a_file_that_does_not_parse_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[("lib.rs", "mod a;"), ("a.rs", "\nfn (")]);
        let error = Tree::read(&folder.path().join("lib.rs")).unwrap_err().to_string();
        assert!(error.contains("a.rs:2: "), "{error}");
    }

    #[test]
    fn generated_code_is_left_alone() {
        let generated = "// automatically generated by flatc\nuse crate::a; struct Twice;";
        let tree =
            tree(&[("lib.rs", "mod a; mod g;"), ("a.rs", "use crate::g::Twice;"), ("g.rs", generated)]);
        let g = &tree.modules[tree.modules[ROOT].children["g"]];
        assert!(g.uses.is_empty() && g.types.is_empty(), "{g:?}");
    }
}
