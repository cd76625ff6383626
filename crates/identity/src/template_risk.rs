//! What is risky about a template: a claim that two users may share or one may change, a host
//! that users choose, and templates whose names can be equal.

use std::fmt;

use super::template::{HostTemplate, Template};

/// Claims that are not unique, or that their user can change (OpenID Connect Core 1.0, section
/// 5.7: only `sub` and `iss` together identify a user).
const CHANGEABLE: [&str; 5] = ["name", "given_name", "family_name", "nickname", "email"];

/// The claim that is unique at a time, and that can be given to another user later.
const REASSIGNED: &str = "preferred_username";

/// A risk of one template.
///
/// ```
/// use kube_coders_identity::Template;
/// use kube_coders_identity::template_risk::{TemplateRisk, risks_of};
///
/// let template = Template::parse("http://code-{email}.ns.svc.cluster.local:8443")?;
/// assert_eq!(risks_of(&template), [TemplateRisk::Changeable("email".to_owned())]);
/// # Ok::<(), kube_coders_identity::TemplateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateRisk {
    /// The name is looked up as it is, and does not exist. Holds the name in full.
    NotFull(String),
    /// Two users can have the same value of this claim, or one can take another's.
    Changeable(String),
    /// The value of this claim can be given to another user later.
    Reassigned(String),
    /// The whole host is a claim's value.
    HostIsClaim(String),
}

impl TemplateRisk {
    /// Whether it leads to strangers or nowhere, and not only to more work for administrators.
    pub fn is_error(&self) -> bool {
        !matches!(self, Self::Reassigned(_))
    }
}

impl fmt::Display for TemplateRisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFull(full) => {
                write!(formatter, "a name with a dot is never completed from a search list: write {full}")
            }
            Self::Changeable(claim) => write!(
                formatter,
                "the claim {claim} is not unique, or its user can change it: use sub, or a claim that only you set"
            ),
            Self::Reassigned(claim) => write!(
                formatter,
                "the claim {claim} can belong to another user later, who then gets this workspace: use sub, or never \
                 give a name to another user"
            ),
            Self::HostIsClaim(claim) => write!(
                formatter,
                "the whole host is the claim {claim}, so users can choose any host of the network: put a text before \
                 or after it"
            ),
        }
    }
}

/// The risks of a template.
///
/// ```
/// use kube_coders_identity::Template;
/// use kube_coders_identity::template_risk::risks_of;
///
/// let risks = |text: &str| Template::parse(text).map(|template| risks_of(&template).len());
/// assert_eq!(risks("http://code-{sub}.ns.svc.cluster.local:8443"), Ok(0));
/// assert_eq!(risks("http://{name}.ns:8443"), Ok(2));
/// ```
pub fn risks_of(template: &Template) -> Vec<TemplateRisk> {
    let host = template.host();
    let mut risks = Vec::new();
    if let Some(domain) = host.missing_domain() {
        risks.push(TemplateRisk::NotFull(format!("{host}.{domain}")));
    }
    if let Some(claim) = host.whole_claim() {
        risks.push(TemplateRisk::HostIsClaim(claim));
    }
    for claim in host.claim_texts() {
        if CHANGEABLE.contains(&&*claim) {
            risks.push(TemplateRisk::Changeable(claim));
        } else if claim == REASSIGNED {
            risks.push(TemplateRisk::Reassigned(claim));
        }
    }
    risks
}

/// Whether two templates can give the same name to two users: `code-{sub}` gives `a-dev` the name
/// that `code-{sub}-dev` gives `a`. Equal templates are no such two.
///
/// ```
/// use kube_coders_identity::HostTemplate;
/// use kube_coders_identity::template_risk::can_meet;
///
/// let host = |text: &str| HostTemplate::parse(text).expect("a host");
/// assert!(can_meet(&host("code-{sub}.test"), &host("code-{sub}-dev.test")));
/// assert!(!can_meet(&host("code-{sub}.test"), &host("dev-{sub}.test")));
/// ```
pub fn can_meet(one: &HostTemplate, other: &HostTemplate) -> bool {
    let (one, other) = (one.labels_around_claims(), other.labels_around_claims());
    one.len() == other.len()
        && one != other
        && one.iter().zip(&other).all(
            |((prefix, is_claim, suffix), (other_prefix, other_is_claim, other_suffix))| {
                let fits = |text: &str, prefix: &str, suffix: &str| {
                    text.len() > prefix.len() + suffix.len()
                        && text.starts_with(prefix)
                        && text.ends_with(suffix)
                };
                match (is_claim, other_is_claim) {
                    (true, true) => {
                        let starts = prefix.starts_with(other_prefix) || other_prefix.starts_with(prefix);
                        starts && (suffix.ends_with(other_suffix) || other_suffix.ends_with(suffix))
                    }
                    (true, false) => fits(other_prefix, prefix, suffix),
                    (false, true) => fits(prefix, other_prefix, other_suffix),
                    (false, false) => prefix == other_prefix,
                }
            },
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn risks(host: &str) -> Vec<TemplateRisk> {
        risks_of(&Template::parse(&format!("http://{host}:1")).unwrap())
    }

    #[test]
    fn each_risk_is_found() {
        use TemplateRisk::{Changeable, HostIsClaim, NotFull, Reassigned};
        for claim in CHANGEABLE {
            assert_eq!(risks(&format!("code-{{{claim}}}.example.com")), [Changeable(claim.to_owned())]);
        }
        assert_eq!(risks("code-{preferred_username}"), [Reassigned("preferred_username".to_owned())]);
        assert_eq!(risks("{sub}"), [HostIsClaim("sub".to_owned())]);
        assert_eq!(risks("{name}"), [HostIsClaim("name".to_owned()), Changeable("name".to_owned())]);
        assert_eq!(
            risks("code-{sub}.code-server"),
            [NotFull("code-{sub}.code-server.svc.cluster.local".to_owned())]
        );
        for host in ["code-{sub}", "{sub}.example.com", "code-{team.name}.a.b", "127.0.0.1", "code.test"] {
            assert_eq!(risks(host), [], "{host}");
        }
        assert!(risks("code-{email}")[0].is_error() && !risks("code-{preferred_username}")[0].is_error());
    }

    #[test]
    fn templates_meet_if_one_name_can_be_made_by_both() {
        let meet = |one: &str, other: &str| {
            let host = |text: &str| HostTemplate::parse(text).unwrap();
            let met = can_meet(&host(one), &host(other));
            assert_eq!(met, can_meet(&host(other), &host(one)), "{one} {other}");
            met
        };
        for (one, other) in [
            ("code-{sub}.test", "code-{sub}-dev.test"),
            ("code-{sub}", "{sub}"),
            ("code-{sub}-a", "{sub}-b-a"),
            ("code-{sub}.test", "code-{email}-dev.test"),
            ("code-{sub}", "code-shared"),
            ("{sub}.{team}.test", "{sub}-a.b.test"),
        ] {
            assert!(meet(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("code-{sub}.test", "code-{sub}.test"),
            ("code-{sub}.test", "dev-{sub}.test"),
            ("code-{sub}-a", "code-{sub}-b"),
            ("code-{sub}.test", "code-{sub}-dev.other"),
            ("code-{sub}.test", "code-{sub}-dev"),
            ("code-{sub}", "code-"),
            ("code-{sub}", "other"),
        ] {
            let Ok(_) = HostTemplate::parse(other) else { continue };
            assert!(!meet(one, other), "{one} {other}");
        }
    }
}
