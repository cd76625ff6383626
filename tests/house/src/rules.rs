//! The rules in one table, with their limits.

use crate::arrows::BoxArrows;
use crate::crates::Budget;
use crate::error::Error;
use crate::reach::Reach;
use crate::workspace::Workspace;
use crate::{arrows, boxes, circles, crates, examples, hidden, names, reach, test_code};

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

/// The page that shows [`ARROWS`] to readers.
const ARROWS_PAGE: &str = "docs/architecture.md";

/// The boxes of the product, and what each may import from the others.
const ARROWS: &[BoxArrows] = &[
    BoxArrows { name: "locks", imports: &[] },
    BoxArrows { name: "bounded_map", imports: &[] },
    BoxArrows { name: "resolver", imports: &["bounded_map", "locks"] },
    BoxArrows { name: "refusal", imports: &[] },
    BoxArrows { name: "route", imports: &["refusal", "resolver"] },
    BoxArrows {
        name: "user_upstream",
        imports: &[
            "bounded_map",
            "locks",
            "logged_user",
            "refusal",
            "resolver",
            "route::mode",
            "route::own_cookies",
            "route::stamp::STAMP_HEADER",
            "subject_digest",
        ],
    },
    BoxArrows {
        name: "forwarder",
        imports: &[
            "bounded_map",
            "locks",
            "logged_user",
            "refusal",
            "resolver",
            "route::kept_headers",
            "route::own_cookies",
            "route::stamp",
        ],
    },
    BoxArrows { name: "subject_digest", imports: &["route::key_file", "route::own_cookies"] },
    BoxArrows { name: "logged_user", imports: &["subject_digest"] },
    BoxArrows {
        name: "cli",
        imports: &[
            "forwarder",
            "logged_user",
            "refusal",
            "resolver",
            "route",
            "subject_digest",
            "user_upstream",
        ],
    },
];

/// Where a program meets the world outside of it.
const fn outside(
    files: &'static [&'static str],
    http: &'static [&'static str],
) -> [(&'static str, &'static [&'static str]); 13] {
    [
        ("std::fs", files),
        ("tokio::fs", &[]),
        ("std::net::TcpListener", &[]),
        ("std::net::TcpStream", &[]),
        ("std::net::ToSocketAddrs", &[]),
        ("std::net::UdpSocket", &[]),
        ("std::os::unix::net", &[]),
        ("tokio::net", &[]),
        ("std::process", &[]),
        ("tokio::process", &[]),
        ("std::env", &[]),
        ("reqwest::Client", http),
        ("reqwest::ClientBuilder", http),
    ]
}

const IDENTITY_OUTSIDE: &[(&str, &[&str])] = &outside(&["pem_file"], &["keys::fetch"]);
const CHECK_OUTSIDE: &[(&str, &[&str])] = &outside(&[], &[]);

/// What the crates reach that are to know no gateway.
const REACHES: &[Reach] = &[
    Reach {
        package: "kube-coders-identity",
        only_in: IDENTITY_OUTSIDE,
        items: &[
            (
                "apisix-plugin-runner",
                &[
                    "CookieNames",
                    "read_bounded",
                    "config::header_name",
                    "upstream::HostName",
                    "upstream::MAX_LABEL",
                    "upstream::MAX_NAME",
                    "upstream::Scheme",
                    "upstream::Timeouts",
                    "upstream::Upstream",
                    "upstream::UpstreamError",
                    "upstream::UpstreamMode",
                    "upstream::checked_timeout",
                    "upstream::is_numeric",
                ],
            ),
            (
                "reqwest",
                &[
                    "Certificate",
                    "Client",
                    "ClientBuilder",
                    "Error",
                    "StatusCode",
                    "Url",
                    "dns::Resolve",
                    "redirect",
                ],
            ),
        ],
    },
    Reach {
        package: "kube-coders-check",
        only_in: CHECK_OUTSIDE,
        items: &[
            ("apisix-plugin-runner", &["upstream::HostName", "upstream::UpstreamMode"]),
            // Not the keys of an issuer, which are fetched.
            (
                "kube-coders-identity",
                &[
                    "HostTemplate",
                    "IdentityConfig",
                    "Template",
                    "Url",
                    "UserUpstreamConfig",
                    "template_risk::TemplateRisk",
                    "template_risk::can_meet",
                    "template_risk::risks_of",
                    "Verified",
                    "is_digits",
                    "parse_digits",
                ],
            ),
        ],
    },
];

/// The crates that others depend on.
const PUBLISHED: &[&str] = &["apisix-ext-plugin", "apisix-plugin-runner"];

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
        name: "arrows",
        says: "a box of the product imports only the boxes that docs/architecture.md lists for it",
        enforced: true,
        look: |workspace| arrows::wrong(workspace, ARROWS, ARROWS_PAGE),
    },
    Rule {
        name: "reach",
        says: "identity and check open files and connections only in named modules",
        enforced: true,
        look: |workspace| {
            let found = REACHES.iter().map(|reach| reach::too_far(workspace, reach));
            Ok(found.collect::<Result<Vec<_>, _>>()?.concat())
        },
    },
    Rule {
        name: "hidden",
        says: "published crates hide no item from their documentation",
        enforced: true,
        look: |workspace| hidden::items(workspace, PUBLISHED),
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
