//! Prints each rule with its findings, and fails if an enforced rule has one.
#![allow(clippy::print_stdout)] // it is what this program is for

use std::process::ExitCode;

use kube_coders_house::{Error, RULES, Workspace};

fn main() -> Result<ExitCode, Error> {
    let workspace = Workspace::of_this_tree()?;
    let mut broken = false;
    for rule in RULES {
        let findings = rule.findings(&workspace)?;
        let state = match (findings.len(), rule.enforced) {
            (0, true) => "holds".into(),
            (0, false) => "holds, and is not enforced yet".into(),
            (count, true) => format!("broken, {count} findings"),
            (count, false) => format!("not enforced yet, {count} findings"),
        };
        println!("{}: {}: {state}", rule.name, rule.says);
        for finding in &findings {
            println!("  {finding}");
        }
        broken |= rule.enforced && !findings.is_empty();
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
