//! What a client can read: a page or a problem document, in English or Korean.

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

/// A weight in thousandths, as in `;q=0.8` (RFC 9110, section 12.4.2).
type Weight = u16;

const FULL_WEIGHT: Weight = 1000;

impl Reader {
    /// Reads a request's method and three of its headers: `accept`,
    /// `accept-language` and `upgrade`, which `header` finds by their names in
    /// lower case.
    ///
    /// A navigation is a GET that accepts HTML by name. `*/*` alone does not
    /// count: that is what scripts and command-line clients send.
    pub(crate) fn new<'h>(method: &str, header: impl Fn(&str) -> Option<&'h [u8]>) -> Self {
        let accepts_html = || {
            header("accept").is_some_and(|accept| {
                weighted(accept).any(|(range, weight)| weight > 0 && range.eq_ignore_ascii_case("text/html"))
            })
        };
        let navigation = method == "GET" && header("upgrade").is_none() && accepts_html();
        let language = header("accept-language").map_or(Language::English, language);
        Self { navigation, language }
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
        let primary = range.split('-').next().unwrap_or_default();
        if primary.eq_ignore_ascii_case("ko") {
            korean_is_first |= english.is_none();
            korean = korean.max(Some(weight));
        } else if primary.eq_ignore_ascii_case("en") {
            english = english.max(Some(weight));
        } else if primary == "*" {
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

/// The items of a list header with their weights; items that are not text or
/// whose weight can't be read are left out.
fn weighted(list: &[u8]) -> impl Iterator<Item = (&str, Weight)> {
    list.split(|byte| *byte == b',').filter_map(|item| {
        let mut parts = std::str::from_utf8(item).ok()?.split(';').map(str::trim);
        let range = parts.next()?;
        for part in parts {
            let Some((name, value)) = part.split_once('=') else { continue };
            if name.trim_end().eq_ignore_ascii_case("q") {
                return Some((range, weight(value.trim_start())?));
            }
        }
        Some((range, FULL_WEIGHT))
    })
}

/// `0`, `1`, and up to three decimals, at most 1.
fn weight(text: &str) -> Option<Weight> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || decimals.len() > 3 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{whole}{decimals:0<3}").parse().ok()?;
    (thousandths <= FULL_WEIGHT).then_some(thousandths)
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

    #[test]
    fn weights_are_thousandths() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(1000)),
            ("1.000", Some(1000)),
            ("0.", Some(0)),
            ("0.5", Some(500)),
            ("0.05", Some(50)),
            ("0.123", Some(123)),
            ("1.001", None),
            ("0.1234", None),
            ("2", None),
            ("-0", None),
            ("0.+1", None),
            ("", None),
        ] {
            assert_eq!(weight(text), expected, "{text:?}");
        }
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
