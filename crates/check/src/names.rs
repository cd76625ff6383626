//! The names that templates give to workspaces: full, unique, and not of the users' choice.

use kube_coders_identity::template_risk::{TemplateRisk, can_meet, risks_of};
use kube_coders_identity::{IdentityConfig, UserUpstreamConfig};

use super::document::Spot;
use super::finding::Findings;
use super::rule::Rule;

/// Checks the template of one conf.
pub(super) fn check(config: &UserUpstreamConfig, spot: &Spot<'_>, findings: &mut Findings) {
    for risk in risks_of(&config.upstream) {
        let (rule, text) = match &risk {
            TemplateRisk::NotFull(full) => {
                (Rule::NameNotFull, format!("upstream's name is not full; {full} may be meant"))
            }
            TemplateRisk::Changeable(claim) => {
                (Rule::ClaimChangeable, format!("upstream is made of the claim {claim}"))
            }
            TemplateRisk::Reassigned(claim) => {
                (Rule::ClaimReassigned, format!("upstream is made of the claim {claim}"))
            }
            TemplateRisk::HostIsClaim(claim) => {
                (Rule::HostIsClaim, format!("upstream's host is the claim {claim}"))
            }
            // A risk that this crate does not know yet.
            _ => (Rule::ClaimChangeable, risk.to_string()),
        };
        findings.add(rule, spot, text);
    }
}

/// Checks the templates of all confs against each other.
pub(super) fn check_together(confs: &[(UserUpstreamConfig, Spot<'_>)], findings: &mut Findings) {
    for (at, (config, spot)) in confs.iter().enumerate() {
        for (earlier, _) in &confs[..at] {
            let (one, other) = (earlier.upstream.host(), config.upstream.host());
            if can_meet(one, other) {
                findings.add(Rule::TemplatesMeet, spot, format!("{other} can give the same name as {one}"));
            } else if one == other && other.claim_names().next().is_some() {
                let issuers = issuer(earlier).zip(issuer(config));
                if let Some((first, second)) = issuers.filter(|(first, second)| first != second) {
                    let text = format!("{other} is the template of {second} and of {first}");
                    findings.add(Rule::IssuersMeet, spot, text);
                }
            }
        }
    }
}

fn issuer(config: &UserUpstreamConfig) -> Option<&str> {
    match &config.identity {
        IdentityConfig::Verified(verified) => Some(&verified.expected.issuer),
        IdentityConfig::Gateway => None,
    }
}
