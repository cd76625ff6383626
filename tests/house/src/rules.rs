//! The rules in one table, with their limits.

use crate::crates::Budget;
use crate::error::Error;
use crate::workspace::Workspace;
use crate::{boxes, circles, crates, examples, names, test_code};

/// Modules on the top level of `src/`, which a reader of the product meets first.
const MOST_BOXES: usize = 20;

/// Modules that only tests may import, wherever they are.
const TEST_MODULES: &[&str] = &["tests", "testing", "test_support"];

/// Packages that only tests, examples and benchmarks may depend on.
const TEST_PACKAGES: &[&str] = &["kube-coders-test-support"];

/// Type names that say enough only together with their module: `token::Error`.
const NAMES_OF_MANY: &[&str] = &["Error", "Result"];

/// Packages that others use, and whose documentation they read.
const DOCUMENTED: &[&str] =
    &["apisix-ext-plugin", "apisix-plugin-runner", "kube-coders-check", "kube-coders-identity"];

/// What a plugin of fifteen lines is built with.
const PLUGIN_AUTHOR: Budget = Budget {
    package: "apisix-plugin-runner",
    without_default_features: 60,
    with_default_features: 95,
    no: &["cc", "cmake"],
};

/// One rule about the source tree.
#[derive(Debug)]
pub struct Rule {
    /// A short name.
    pub name: &'static str,
    /// The rule in a sentence.
    pub says: &'static str,
    /// Whether a finding makes the tests fail. A rule that does not hold yet is only printed.
    pub enforced: bool,
    look: fn(&Workspace) -> Result<Vec<String>, Error>,
}

impl Rule {
    /// The places that break the rule, one finding each.
    pub fn findings(&self, workspace: &Workspace) -> Result<Vec<String>, Error> {
        (self.look)(workspace)
    }
}

/// All rules.
pub const RULES: &[Rule] = &[
    Rule {
        name: "boxes",
        says: "the top level of src/ has at most 20 modules",
        enforced: true,
        look: |workspace| boxes::too_many(workspace, MOST_BOXES),
    },
    Rule {
        name: "circles",
        says: "modules at the same level don't import each other in a circle",
        enforced: true,
        look: circles::among_siblings,
    },
    Rule {
        name: "circles-with-parents",
        says: "a module that uses its parent's items is not used by its parent",
        enforced: true,
        look: circles::with_parents,
    },
    Rule {
        name: "test-code",
        says: "nothing in production imports test code",
        enforced: true,
        look: |workspace| test_code::imported(workspace, TEST_MODULES, TEST_PACKAGES),
    },
    Rule {
        name: "names",
        says: "a type name has one meaning in the whole workspace",
        enforced: true,
        look: |workspace| names::twice(workspace, NAMES_OF_MANY),
    },
    Rule {
        name: "crates",
        says: "a plugin author's build stays small and compiles no C",
        enforced: true,
        look: |workspace| crates::over(workspace, &PLUGIN_AUTHOR),
    },
    Rule {
        name: "examples",
        says: "each public type and function of a library crate has an example that is compiled",
        enforced: true,
        look: |workspace| examples::missing(workspace, DOCUMENTED),
    },
];
