//! What a client can read: a page or a problem document, in English or Korean.

use apisix_plugin_runner::accept::{Weight, is_navigation, weighted};

/// The languages of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    English,
    Korean,
}

/// The reader of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reader {
    navigation: bool,
    language: Language,
}

impl Reader {
    /// Reads a request's method and three of its headers: `accept`,
    /// `accept-language` and `upgrade`, which `header` finds by their names in
    /// lower case.
    pub(crate) fn new<'h>(method: &str, header: impl Fn(&str) -> Option<&'h [u8]>) -> Self {
        let language = header("accept-language").map_or(Language::English, language);
        Self { navigation: is_navigation(method, header), language }
    }

    /// Whether a person reads the response.
    pub(crate) fn is_navigation(&self) -> bool {
        self.navigation
    }

    /// The language that this person prefers.
    pub(crate) fn language(&self) -> Language {
        self.language
    }
}

/// The language with the higher weight. If both weigh the same, the first one counts. If
/// neither is accepted, it is English.
fn language(accept_language: &[u8]) -> Language {
    let mut english: Option<Weight> = None;
    let mut korean: Option<Weight> = None;
    let mut others: Weight = 0;
    let mut korean_is_first = false;
    for (range, weight) in weighted(accept_language) {
        let primary = range.split(|byte| *byte == b'-').next().unwrap_or_default();
        if primary.eq_ignore_ascii_case(b"ko") {
            korean_is_first |= english.is_none();
            korean = korean.max(Some(weight));
        } else if primary.eq_ignore_ascii_case(b"en") {
            english = english.max(Some(weight));
        } else if primary == b"*" {
            others = others.max(weight);
        }
    }
    // A language that is named does not take the weight of `*` (RFC 4647,
    // section 3.3.1: the more specific range decides).
    let (english, korean) = (english.unwrap_or(others), korean.unwrap_or(others));
    if korean > english || korean == english && korean > 0 && korean_is_first {
        Language::Korean
    } else {
        Language::English
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_language(accept_language: &str, expected: Language) {
        assert_eq!(language(accept_language.as_bytes()), expected, "{accept_language:?}");
    }

    #[test]
    fn the_language_with_the_higher_weight_is_chosen() {
        use Language::{English, Korean};
        check_language("", English);
        check_language("ko", Korean);
        check_language("ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7", Korean);
        check_language("en-US,en;q=0.9,ko;q=0.8", English);
        check_language("en;q=0.1, KO-kr ; Q=0.2", Korean);
        check_language("ko,en", Korean);
        check_language("en,ko", English);
        check_language("de,fr;q=0.9", English);
        check_language("de,ko;q=0.1", Korean);
        check_language("ko;q=0", English);
        check_language("*", English);
        check_language("*,en;q=0.5", Korean);
        check_language("*;q=0.5,ko;q=0.4", English);
        check_language("ko;q=2", English);
        check_language("ko;q=0.1234", English);
        check_language("ko;q=", English);
        check_language("korean", English);
        check_language(",,;,ko;;q=0.5", Korean);
    }

    #[track_caller]
    fn check_navigation(method: &str, headers: &[(&str, &[u8])], expected: bool) {
        let reader = Reader::new(method, |name| {
            headers.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
        });
        assert_eq!(reader.is_navigation(), expected, "{method} {headers:?}");
    }

    #[test]
    fn a_navigation_is_a_get_that_accepts_html() {
        let browser = b"text/html,application/xhtml+xml,*/*;q=0.8".as_slice();
        check_navigation("GET", &[("accept", browser)], true);
        check_navigation("GET", &[("accept", b"*/*, TEXT/HTML;level=1;q=0.1")], true);
        check_navigation("HEAD", &[("accept", browser)], false);
        check_navigation("POST", &[("accept", browser)], false);
        check_navigation("GET", &[], false);
        check_navigation("GET", &[("accept", b"*/*")], false);
        check_navigation("GET", &[("accept", b"application/json")], false);
        check_navigation("GET", &[("accept", b"text/html;q=0")], false);
        check_navigation("GET", &[("accept", b"\xff,text/html")], true);
        check_navigation("GET", &[("accept", browser), ("upgrade", b"websocket")], false);
    }
}
