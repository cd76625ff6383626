//! Import circles: modules that can't be read, moved or tested without each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::imports::{self, Import};
use crate::modules::{ModuleIndex, ROOT, Tree};
use crate::workspace::Workspace;

/// The circles among the children of one module, each child taken with all that is below it.
pub(crate) fn among_siblings(workspace: &Workspace) -> Result<Vec<String>, Error> {
    Ok(all(workspace, false))
}

/// The circles between a module's own file and its children: a child uses what its parent
/// defines, and the parent uses the child. `lib.rs` and `main.rs` count too.
pub(crate) fn with_parents(workspace: &Workspace) -> Result<Vec<String>, Error> {
    Ok(all(workspace, true))
}

fn all(workspace: &Workspace, with_parents: bool) -> Vec<String> {
    let mut findings = Vec::new();
    for package in &workspace.packages {
        for tree in &package.trees {
            let imports = imports::of(tree);
            for level in 0..tree.modules.len() {
                let circles = circles(tree, &imports, level, with_parents);
                findings.extend(circles.iter().map(|arrows| shown(workspace, tree, level, arrows)));
            }
        }
    }
    findings
}

/// The arrows of each circle at `level`, by which box they leave and enter.
type Arrows<'a> = BTreeMap<(ModuleIndex, ModuleIndex), &'a Import>;

fn circles<'a>(
    tree: &Tree,
    imports: &'a [Import],
    level: ModuleIndex,
    with_parents: bool,
) -> Vec<Arrows<'a>> {
    let mut arrows = Arrows::new();
    for import in imports {
        let (Some(from), Some(to)) = (box_of(tree, import.from, level), box_of(tree, import.to, level))
        else {
            continue;
        };
        // A file of its own is a box at this level if parents count.
        if from != to && (with_parents || (from != level && to != level)) {
            arrows.entry((from, to)).or_insert(import);
        }
    }
    let circles = parts(&arrows).into_iter().filter(|part| part.len() > 1);
    circles
        // With parents, only what goes through the parent: the others are circles among siblings.
        .filter(|part| !with_parents || part.contains(&level))
        .map(|part| {
            let within = |(from, to): &(ModuleIndex, ModuleIndex)| part.contains(from) && part.contains(to);
            arrows.iter().filter(|(ends, _)| within(ends)).map(|(ends, import)| (*ends, *import)).collect()
        })
        .collect()
}

/// The child of `level` that `place` is in, or `level` itself.
fn box_of(tree: &Tree, place: ModuleIndex, level: ModuleIndex) -> Option<ModuleIndex> {
    if place == level {
        return Some(level);
    }
    match tree.modules[place].parent {
        Some(parent) if parent == level => Some(place),
        Some(parent) => box_of(tree, parent, level),
        None => None,
    }
}

/// Splits boxes into groups within which each reaches each other one.
fn parts(arrows: &Arrows<'_>) -> Vec<BTreeSet<ModuleIndex>> {
    let reached = |start: ModuleIndex| {
        let mut reached = BTreeSet::new();
        let mut next = vec![start];
        while let Some(from) = next.pop() {
            for (_, to) in arrows.keys().filter(|(leaves, _)| *leaves == from) {
                if reached.insert(*to) {
                    next.push(*to);
                }
            }
        }
        reached
    };
    let boxes: BTreeSet<ModuleIndex> = arrows.keys().flat_map(|(from, to)| [*from, *to]).collect();
    let reach: BTreeMap<ModuleIndex, BTreeSet<ModuleIndex>> =
        boxes.iter().map(|at| (*at, reached(*at))).collect();
    let mut parts: Vec<BTreeSet<ModuleIndex>> = Vec::new();
    for at in &boxes {
        if !parts.iter().any(|part| part.contains(at)) {
            let mutual = |other: &ModuleIndex| reach[at].contains(other) && reach[other].contains(at);
            parts.push(boxes.iter().copied().filter(|other| other == at || mutual(other)).collect());
        }
    }
    parts
}

fn shown(workspace: &Workspace, tree: &Tree, level: ModuleIndex, arrows: &Arrows<'_>) -> String {
    let boxes: BTreeSet<ModuleIndex> = arrows.keys().map(|(from, _)| *from).collect();
    let name = |place: ModuleIndex| if place == level { "(its own file)" } else { &tree.modules[place].name };
    let mut text = format!(
        "{}: below {}: {}",
        workspace.shown(&tree.modules[ROOT].file),
        tree.full_name(level),
        boxes.iter().map(|place| name(*place)).collect::<Vec<_>>().join(", ")
    );
    for ((from, to), import) in arrows {
        text += &format!(
            "\n    {} -> {}: {}:{} {}",
            name(*from),
            name(*to),
            workspace.shown(&tree.modules[import.from].file),
            import.line,
            import.path
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::workspace;

    #[track_caller]
    fn check(files: &[(&str, &str)], with_parents: bool, expected: &[&str]) {
        let workspace = workspace(files);
        let found = all(&workspace, with_parents);
        let heads: Vec<&str> = found.iter().filter_map(|finding| finding.lines().next()).collect();
        assert_eq!(heads, expected, "{found:#?}");
    }

    #[test]
    fn a_circle_of_three_is_one_finding() {
        let files = [
            ("src/lib.rs", "mod a; mod b; mod c; mod d;"),
            ("src/a.rs", "use crate::b;"),
            ("src/b.rs", "use crate::c;"),
            ("src/c.rs", "use crate::a;"),
            ("src/d.rs", "use crate::{a, b, c};"),
        ];
        check(&files, false, &["src/lib.rs: below crate: a, b, c"]);
    }

    #[test]
    fn a_child_counts_for_the_box_that_it_is_in() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", "mod deep;"),
            ("src/a/deep.rs", "use crate::b;"),
            ("src/b.rs", "use crate::a;"),
        ];
        check(&files, false, &["src/lib.rs: below crate: a, b"]);
    }

    #[test]
    fn a_circle_deep_in_the_tree_is_found() {
        let files = [
            ("src/lib.rs", "mod a;"),
            ("src/a.rs", "mod b; mod c;"),
            ("src/a/b.rs", "use super::c;"),
            ("src/a/c.rs", "use super::b;"),
        ];
        check(&files, false, &["src/lib.rs: below crate::a: b, c"]);
    }

    #[test]
    fn a_parent_that_uses_the_child_that_uses_it_is_a_circle_of_its_own_kind() {
        let files = [
            ("src/lib.rs", "mod a;"),
            ("src/a.rs", "mod b; use b::B; pub(crate) struct A;"),
            ("src/a/b.rs", "use super::A; pub(crate) struct B;"),
        ];
        check(&files, false, &[]);
        check(&files, true, &["src/lib.rs: below crate::a: (its own file), b"]);
    }

    #[test]
    fn a_front_door_and_arrows_one_way_are_no_circle() {
        let files = [
            ("src/lib.rs", "mod a; mod b; pub use b::B;"),
            ("src/a.rs", "use crate::B; mod c; pub(crate) use c::C; pub(crate) struct A;"),
            ("src/a/c.rs", "use super::A; use crate::b::B; pub(crate) struct C;"),
            ("src/b.rs", "pub struct B;"),
        ];
        check(&files, false, &[]);
        check(&files, true, &[]);
    }
}
