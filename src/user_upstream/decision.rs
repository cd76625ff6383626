//! The workspace of an identity. Only claims and conf decide it.

use tokio::time::Instant;

use super::comparison::comparison_text;
use super::decision_error::DecisionError;
use super::rejection::Rejection;
use super::trace::{StepOutcome, Trace, found_text, quoted};
use apisix_plugin_runner::Upstream;
use kube_coders_identity::claims::Claims;
use kube_coders_identity::config::UserUpstreamConfig;
use kube_coders_identity::keys::KeyStatus;
use kube_coders_identity::label::MAX_VALUE;

/// The user as the workspace will see them, and the upstream of their requests.
#[derive(Debug)]
pub(super) struct WorkspaceDecision {
    /// With the subject, which a header can hold.
    pub(super) upstream: Upstream,
    /// The user name, if there is one of up to 255 characters that a header can hold.
    pub(super) username: Option<Box<str>>,
    /// When the token's time is over, if it was a token's word.
    pub(super) good_until: Option<Instant>,
    /// The key that signed the token.
    pub(super) key: Option<KeyStatus>,
}

impl WorkspaceDecision {
    pub(super) fn of<T: Trace>(
        config: &UserUpstreamConfig,
        claims: &Claims,
        trace: &mut T,
    ) -> Result<Self, Rejection> {
        trace.good("subject", || quoted(claims.subject()));
        let subject = if is_header_text(claims.subject()) { Ok(()) } else { Err(DecisionError::Subject) };
        trace.check("subject", subject)?;
        if T::KEEPS {
            for path in config.policy.paths() {
                trace.good("claim", || format!("`{path}` {}", found_text(claims.find(path))));
            }
        }
        config.policy.decide(claims).map_err(|denied| {
            let rejection = Rejection::from(DecisionError::from(denied));
            trace.note(StepOutcome::Bad, "policy", || {
                format!("{rejection}{}", comparison_text(&config.policy, denied, claims))
            });
            rejection
        })?;
        trace.good("policy", || {
            if config.policy.is_empty() { "no rules, all users are admitted" } else { "admitted" }.to_owned()
        });
        if T::KEEPS {
            note_labels(config, claims, trace);
        }
        let upstream = trace.check("name", config.upstream.render(claims).map_err(DecisionError::from))?;
        let upstream = upstream.with_timeouts(config.timeouts);
        let upstream = match config.upstream_mode {
            Some(mode) => upstream.in_mode(mode),
            None => upstream,
        };
        trace.good("name", || upstream.host().as_str().to_owned());
        Ok(Self {
            upstream: upstream.for_subject(claims.subject()).expect("a subject that is 1 to 255 characters"),
            username: claims.username().filter(|name| is_short_header_text(name)).map(Box::from),
            good_until: None,
            key: None,
        })
    }
}

fn note_labels(config: &UserUpstreamConfig, claims: &Claims, trace: &mut impl Trace) {
    for (claim, label) in config.upstream.labels(claims) {
        let outcome = if label.is_some() { StepOutcome::Good } else { StepOutcome::Bad };
        trace.note(outcome, "label", || {
            let value = claims.text(claim).map_or("missing".to_owned(), quoted);
            format!("`{claim}` is {value}: {}", label.as_deref().unwrap_or("no label"))
        });
    }
}

/// Whether a text can be a header's value as it is. Users choose their names, so a name
/// that can't is no reason to reject the user.
fn is_header_text(text: &str) -> bool {
    // Spaces around it are not the value's (RFC 9110, section 5.5), so " a" would arrive as "a".
    !text.is_empty() && text.trim() == text && !text.chars().any(char::is_control)
}

/// Whether a text can be a header's value, and is no longer than a subject: names are
/// kept in memory, and users choose them.
fn is_short_header_text(text: &str) -> bool {
    is_header_text(text) && text.chars().nth(MAX_VALUE).is_none()
}
