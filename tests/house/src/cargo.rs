//! What Cargo says about packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::Error;

#[derive(Deserialize)]
pub(crate) struct Metadata {
    pub(crate) workspace_root: PathBuf,
    pub(crate) packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
pub(crate) struct MetadataPackage {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) targets: Vec<MetadataTarget>,
    pub(crate) dependencies: Vec<MetadataDependency>,
}

#[derive(Deserialize)]
pub(crate) struct MetadataTarget {
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

#[derive(Deserialize)]
pub(crate) struct MetadataDependency {
    pub(crate) name: String,
    /// `null` for normal ones.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// The packages of the workspace that `folder` is in.
    pub(crate) fn of_members(folder: &Path) -> Result<Self, Error> {
        Self::read(folder, &["metadata", "--no-deps", "--format-version", "1"])
    }

    /// The members of the workspace and every package that they depend on.
    pub(crate) fn of_all(folder: &Path) -> Result<Self, Error> {
        Self::read(folder, &["metadata", "--format-version", "1"])
    }

    fn read(folder: &Path, arguments: &[&str]) -> Result<Self, Error> {
        let text = printed_by_cargo(folder, arguments)?;
        serde_json::from_str(&text).map_err(|error| Error(format!("cargo metadata: {error}")))
    }
}

impl MetadataPackage {
    pub(crate) fn folder(&self) -> PathBuf {
        self.manifest_path.parent().map(Path::to_owned).unwrap_or_default()
    }
}

/// What `cargo` prints when it is run in `folder`.
pub(crate) fn printed_by_cargo(folder: &Path, arguments: &[&str]) -> Result<String, Error> {
    // Cargo sets CARGO for the programs that it runs, so this is the same toolchain.
    let program = option_env!("CARGO").unwrap_or("cargo");
    let output = Command::new(program).current_dir(folder).args(arguments).output();
    let output = output.map_err(|error| Error(format!("cargo {}: {error}", arguments.join(" "))))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error(format!("cargo {}: {}", arguments.join(" "), said.trim_end())));
    }
    String::from_utf8(output.stdout).map_err(|error| Error(format!("cargo {}: {error}", arguments.join(" "))))
}
