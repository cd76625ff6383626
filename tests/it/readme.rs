use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::program::{BINARY, run};

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The first column's backquoted words of the rows under a heading, each with
/// the second column.
fn rows(page: &str, heading: &str) -> Vec<(Vec<String>, String)> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    let rows = lines.map(|line| {
        let mut columns = line.trim_matches('|').split(" | ");
        let quoted = columns.next().unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (quoted, columns.next().unwrap().trim().to_owned())
    });
    let rows: Vec<_> = rows.collect();
    assert!(rows.len() > 3, "{heading}: {rows:?}");
    rows
}

/// The flags of a command's help, each with what it says of its default.
fn help(command: &str) -> BTreeMap<String, Option<String>> {
    let printed = run(std::process::Command::new(BINARY).args([command, "--help"]));
    assert_eq!(printed.code, Some(0));
    let mut flags = BTreeMap::new();
    let mut flag = None;
    for line in printed.stdout.lines() {
        if let Some(name) = line.trim_start().strip_prefix("--") {
            let name = name.split([' ', '\n']).next().unwrap();
            flag = Some(name.to_owned());
            flags.insert(name.to_owned(), None);
        }
        let default = line.split_once("[default: ").and_then(|(_, rest)| rest.split(']').next());
        if let (Some(default), Some(flag)) = (default, &flag) {
            flags.insert(flag.clone(), Some(default.to_owned()));
        }
    }
    flags
}

#[test]
fn every_flag_of_run_is_on_its_page_with_its_default() {
    let mut flags = help("run");
    assert!(flags.len() > 10, "{flags:?}");
    for (names, default) in rows(&page("docs/running.md"), "Settings") {
        for name in names {
            let known = flags.remove(name.strip_prefix("--").unwrap());
            let known = known.unwrap_or_else(|| panic!("run has no {name}"));
            // A default in words is told at more length by the help.
            if let Some(known) = known.filter(|known| !known.contains(' ')) {
                assert_eq!(default, known, "{name}");
            }
        }
    }
    assert!(flags.is_empty(), "not on the page: {flags:?}");
}

#[test]
fn every_command_of_the_readme_is_there_with_its_flags() {
    for (usages, _) in rows(&page("README.md"), "Commands") {
        let words: Vec<&str> = usages[0].split_whitespace().collect();
        assert_eq!(words[0], "kube-coders");
        let flags = help(words[1]);
        for word in &words[2..] {
            if let Some(flag) = word.trim_matches(['[', ']']).strip_prefix("--") {
                assert!(flags.contains_key(flag), "{} has no --{flag}", words[1]);
            }
        }
    }
}

/// The pages below a folder.
fn pages_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("node_modules") && !path.ends_with("target") {
            pages_below(&path, found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_that_a_page_links_to_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    for folder in ["docs", "apisix-conf", "examples", "tests"] {
        pages_below(&root.join(folder), &mut pages);
    }
    assert!(pages.len() > 20, "{pages:?}");
    let mut links = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        // What stands in a block is no link.
        let prose: String = text.split("```").step_by(2).collect();
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if !link.starts_with("http") && !file.is_empty() {
                assert!(page.parent().unwrap().join(file).exists(), "{}: {link}", page.display());
                links += 1;
            }
        }
    }
    assert!(links > 50, "{links}");
}

#[test]
fn every_page_is_in_the_book_s_summary() {
    let summary = page("docs/SUMMARY.md");
    let mut pages = Vec::new();
    pages_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"), &mut pages);
    assert!(pages.len() > 5, "{pages:?}");
    for page in pages.iter().filter(|page| !page.ends_with("SUMMARY.md")) {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(summary.contains(&format!("({name})")), "{name}");
    }
}
