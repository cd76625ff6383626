//! The steps of a walk, for `explain`. The plugin's own trace is empty and costs nothing:
//! it makes no text.

use std::time::Duration;

use super::rejection::Rejection;
use kube_coders_identity::claims::{Claim, Found};

/// How much of a text from a request is shown, in characters.
const SHOWN_TEXT: usize = 200;

/// How many values of a list are shown.
pub(super) const SHOWN_VALUES: usize = 8;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepOutcome {
    Good,
    Bad,
    /// Not known here.
    Open,
}

/// Takes down the steps of a walk.
pub(super) trait Trace: Send {
    /// Whether steps are kept at all.
    const KEEPS: bool = true;

    /// Takes down a step. The text is made only if it is kept.
    fn note(&mut self, outcome: StepOutcome, what: &'static str, text: impl FnOnce() -> String);

    fn good(&mut self, what: &'static str, text: impl FnOnce() -> String) {
        self.note(StepOutcome::Good, what, text);
    }

    fn open(&mut self, what: &'static str, text: impl FnOnce() -> String) {
        self.note(StepOutcome::Open, what, text);
    }

    /// The value, or the rejection after taking it down.
    fn check<T, E: Into<Rejection>>(
        &mut self,
        what: &'static str,
        checked: Result<T, E>,
    ) -> Result<T, Rejection> {
        checked.map_err(|error| {
            let rejection = error.into();
            self.note(StepOutcome::Bad, what, || rejection.to_string());
            rejection
        })
    }
}

/// The plugin's trace.
pub(super) struct NoTrace;

impl Trace for NoTrace {
    const KEEPS: bool = false;

    fn note(&mut self, _: StepOutcome, _: &'static str, _: impl FnOnce() -> String) {}
}

/// One step of a walk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) outcome: StepOutcome,
    pub(crate) what: &'static str,
    pub(crate) said: String,
}

/// The steps of a walk, up to the one that rejects the request.
#[derive(Default)]
pub(crate) struct Steps(pub(crate) Vec<Step>);

impl Trace for Steps {
    fn note(&mut self, outcome: StepOutcome, what: &'static str, text: impl FnOnce() -> String) {
        self.0.push(Step { outcome, what, said: text() });
    }
}

/// What a claim is, in a word or as it is written.
pub(super) fn claim_text(claim: Option<&Claim>) -> String {
    match claim {
        None => "is missing".to_owned(),
        Some(Claim::Text(text)) => format!("is {}", quoted(text)),
        Some(Claim::Number(number)) => format!("is {number}"),
        Some(Claim::List(list)) => {
            let texts: Vec<_> = list
                .iter()
                .take(SHOWN_VALUES)
                .map(|claim| match claim {
                    Claim::Text(text) => quoted(text),
                    _ => "something else than a text".to_owned(),
                })
                .collect();
            let more = if list.len() > SHOWN_VALUES { ", …" } else { "" };
            format!("is a list of {}: {}{more}", list.len(), texts.join(", "))
        }
        Some(Claim::Object(_) | Claim::Other) => "is neither a text nor a list".to_owned(),
    }
}

pub(super) fn found_text(found: Found<'_>) -> String {
    match found {
        Found::Claim(claim) => claim_text(Some(claim)),
        Found::Nothing => "is missing, so it has no values".to_owned(),
        Found::NoObject => "leads through something that is no object".to_owned(),
    }
}

/// A text from a request, quoted, and cut if it is long.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(SHOWN_TEXT).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

/// A time from now on, or before now, in seconds.
pub(super) fn distance(seconds: f64) -> String {
    let length = Duration::from_secs(seconds.abs().min(1e9) as u64);
    let length = humantime::format_duration(length);
    if seconds < 0.0 { format!("{length} ago") } else { format!("in {length}") }
}
