//! Type names with more than one meaning.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::workspace::Workspace;

/// Finds each name of a type, trait or alias that two places of the workspace define,
/// except for `allowed`.
pub(crate) fn twice(workspace: &Workspace, allowed: &[&str]) -> Result<Vec<String>, Error> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let trees = workspace.packages.iter().flat_map(|package| &package.trees);
    for module in trees.flat_map(|tree| &tree.modules) {
        for mention in &module.types {
            let place = format!("{}:{}", workspace.shown(&module.file), mention.line);
            places.entry(&mention.what).or_default().push(place);
        }
    }
    let twice = places.into_iter().filter(|(name, places)| places.len() > 1 && !allowed.contains(name));
    Ok(twice.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::workspace;

    #[test]
    fn a_name_is_found_in_both_places_whatever_kind_of_type_it_is() {
        let workspace = workspace(&[
            ("src/lib.rs", "mod a;\nstruct Head;\nenum Error {}\nstruct Once;\nfn Fine() {}"),
            (
                "src/a.rs",
                "type Head = ();\nenum Error {}\nfn Fine() {}\n#[cfg(test)] mod tests { struct Once; }",
            ),
        ]);
        assert_eq!(twice(&workspace, &["Error"]).unwrap(), ["Head: src/lib.rs:2, src/a.rs:1"]);
    }
}
