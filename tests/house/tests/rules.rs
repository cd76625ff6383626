//! The enforced rules hold in this tree.

use std::collections::BTreeSet;

use kube_coders_house::{RULES, Workspace};

#[test]
fn every_enforced_rule_holds() {
    let workspace = Workspace::of_this_tree().unwrap();
    let mut broken = String::new();
    for rule in RULES.iter().filter(|rule| rule.enforced) {
        for finding in rule.findings(&workspace).unwrap() {
            broken += &format!("{}: {finding}\n", rule.says);
        }
    }
    assert!(broken.is_empty(), "\n{broken}");
}

#[test]
fn every_rule_can_look_at_this_tree_and_has_a_name_of_its_own() {
    let workspace = Workspace::of_this_tree().unwrap();
    for rule in RULES {
        rule.findings(&workspace).unwrap();
    }
    let names: BTreeSet<_> = RULES.iter().map(|rule| rule.name).collect();
    assert!(!names.is_empty() && names.len() == RULES.len(), "{names:?}");
}
