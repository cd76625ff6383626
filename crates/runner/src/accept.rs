//! Which media types and languages a client accepts, and whether a person reads the
//! response.

/// A weight in thousandths, as in `;q=0.8` (RFC 9110, section 12.4.2).
///
/// ```
/// use apisix_plugin_runner::accept::{FULL_WEIGHT, Weight};
///
/// let half: Weight = 500; // `;q=0.5`
/// assert!(half < FULL_WEIGHT);
/// ```
pub type Weight = u16;

/// The weight of an item that names none.
pub const FULL_WEIGHT: Weight = 1000;

/// The items of an `Accept` header, or of another list with weights. Items whose weight
/// can't be read are left out.
///
/// ```
/// use apisix_plugin_runner::accept::weighted;
///
/// let items: Vec<_> = weighted(b"ko, en;q=0.5, fr;q=much").collect();
/// assert_eq!(items, [(&b"ko"[..], 1000), (b"en", 500)]);
/// ```
pub fn weighted(list: &[u8]) -> impl Iterator<Item = (&[u8], Weight)> {
    list.split(|byte| *byte == b',').filter_map(|item| {
        let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let range = parts.next()?;
        for part in parts {
            let Some(equals) = part.iter().position(|byte| *byte == b'=') else { continue };
            if part[..equals].trim_ascii_end().eq_ignore_ascii_case(b"q") {
                return Some((range, weight(part[equals + 1..].trim_ascii_start())?));
            }
        }
        Some((range, FULL_WEIGHT))
    })
}

/// `0`, `1`, and up to three decimals, at most 1.
fn weight(text: &[u8]) -> Option<Weight> {
    let (whole, decimals) = match text {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', decimals @ ..] => (whole, decimals),
        _ => return None,
    };
    if decimals.len() > 3 || !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = std::iter::once(whole).chain(decimals).chain([b'0'; 3].iter()).take(4);
    let thousandths = digits.fold(0, |sum, digit| sum * 10 + Weight::from(digit - b'0'));
    (thousandths <= FULL_WEIGHT).then_some(thousandths)
}

/// Whether a request is a browser's navigation, so that a person reads the response: a
/// `GET` without `Upgrade` whose `Accept` lists `text/html`.
///
/// `*/*` alone does not count, because scripts and command-line clients send it. `header`
/// finds the first value of a header by its name in lower case.
///
/// ```
/// use apisix_plugin_runner::accept::is_navigation;
///
/// let browser = |name: &str| (name == "accept").then_some(&b"text/html,*/*;q=0.8"[..]);
/// assert!(is_navigation("GET", browser));
/// assert!(!is_navigation("POST", browser));
/// ```
pub fn is_navigation<'h>(method: &str, header: impl Fn(&str) -> Option<&'h [u8]>) -> bool {
    let accepts_html = || {
        header("accept").is_some_and(|accept| {
            weighted(accept).any(|(range, weight)| weight > 0 && range.eq_ignore_ascii_case(b"text/html"))
        })
    };
    method == "GET" && header("upgrade").is_none() && accepts_html()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_up_to_three_decimals_and_are_at_most_one() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(1000)),
            ("1.", Some(1000)),
            ("0.5", Some(500)),
            ("0.25", Some(250)),
            ("0.001", Some(1)),
            ("1.000", Some(1000)),
            ("1.001", None),
            ("0.0001", None),
            ("2", None),
            ("", None),
            (".5", None),
            ("-0", None),
            ("0.x", None),
            ("0 .5", None),
        ] {
            assert_eq!(weight(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_navigation_accepts_html_by_name() {
        let accepts = |accept: &'static str| {
            is_navigation("GET", |name| (name == "accept").then_some(accept.as_bytes()))
        };
        for accept in
            ["text/html", "TEXT/HTML;q=0.1", "image/png, text/html ; Q = 1", "a;q=x,text/html;b;q=1"]
        {
            assert!(accepts(accept), "{accept:?}");
        }
        for accept in
            ["", "*/*", "text/*", "text/html;q=0", "text/html;q=2", "text/htmlx", "text/html;q=x;q=1"]
        {
            assert!(!accepts(accept), "{accept:?}");
        }
        let upgrade = |name: &str| Some(if name == "accept" { &b"text/html"[..] } else { b"websocket" });
        assert!(!is_navigation("GET", upgrade));
    }
}
