//! For how long a browser may keep what it could open as a document.
//!
//! All users of a browser share the gateway's origin. A document that the browser opens from
//! its cache never asks the gateway, so it would show one user's page to the next. Browsers
//! have to ask for each document; scripts, styles, images and the like are cached as the
//! workspace says, because a document of the next user clears them.

use super::head::{HeaderField, RawResponseHead};

/// Media types that no browser opens as a document with scripts.
const INERT_TYPES: [&str; 9] = [
    "application/javascript",
    "application/json",
    "application/manifest+json",
    "application/octet-stream",
    "application/wasm",
    "application/x-javascript",
    "text/css",
    "text/javascript",
    "text/x-javascript",
];

/// What the response's own words about caching come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    AsSaid,
    /// They are replaced: the browser may keep it and has to ask before each use.
    Asked,
    /// They are removed, and what the browser already knows stays: they could be about a
    /// document.
    Removed,
}

/// What becomes of a response's words about caching.
pub(crate) fn caching_of(head: &RawResponseHead<'_>) -> Caching {
    match head.status {
        // It changes how long the browser keeps what it has, and does not say what that is.
        304 => Caching::Removed,
        _ if is_never_stored(&head.fields) => Caching::AsSaid,
        // Browsers keep these for good if nobody says otherwise (RFC 9111, section 4.2.2).
        300 | 301 | 308 | 410 => Caching::Asked,
        _ if !head.fields.iter().any(lets_browsers_keep) => Caching::AsSaid,
        // A redirect is followed whatever its type is.
        302..400 => Caching::Asked,
        _ if is_inert(&head.fields) => Caching::AsSaid,
        _ => Caching::Asked,
    }
}

/// Whether a header says for how long a response may be kept.
pub(crate) fn is_about_caching(field: &HeaderField<'_>) -> bool {
    matches!(field.name.len(), 6 | 7 | 13)
        && (field.is("cache-control") || field.is("expires") || field.is("pragma"))
}

/// Whether a header can make a browser keep a response. By the time of the last change, it
/// guesses for how long.
fn lets_browsers_keep(field: &HeaderField<'_>) -> bool {
    is_about_caching(field) || field.is("last-modified")
}

fn is_inert(fields: &[HeaderField<'_>]) -> bool {
    let mut types = fields.iter().filter(|field| field.is("content-type"));
    let (Some(found), None) = (types.next(), types.next()) else { return false };
    // It opens another address.
    if fields.iter().any(|field| field.is("refresh")) {
        return false;
    }
    let media_type = found.value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let is = |known: &&str| media_type.eq_ignore_ascii_case(known.as_bytes());
    let begins = |prefix: &str| {
        media_type.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    // Browsers take the last of several types.
    if found.value.contains(&b',') {
        return false;
    }
    INERT_TYPES.iter().any(is)
        || ["image/", "font/", "audio/", "video/"].into_iter().any(begins) && !begins("image/svg")
}

fn is_never_stored(fields: &[HeaderField<'_>]) -> bool {
    let mut lines = fields.iter().filter(|field| field.is("cache-control"));
    lines.any(|line| {
        // Between quotes, a word is not a directive.
        !line.value.contains(&b'"')
            && line
                .value
                .split(|byte| *byte == b',')
                .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"no-store"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caching(status: u16, lines: &str) -> Caching {
        let text = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
        caching_of(&RawResponseHead::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn what_a_browser_could_open_is_asked_for_each_time() {
        for lines in [
            "Cache-Control: max-age=31536000, immutable\r\n",
            "Expires: Thu, 01 Jan 2099 00:00:00 GMT\r\n",
            "Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
            "Content-Type: text/html\r\nCache-Control: max-age=9\r\n",
            "content-type: TEXT/HTML; charset=utf-8\r\nCache-Control: max-age=9\r\n",
            "Content-Type: application/xhtml+xml\r\nCache-Control: max-age=9\r\n",
            "Content-Type: image/svg+xml\r\nCache-Control: max-age=9\r\n",
            "Content-Type: Image/SVG\r\nCache-Control: max-age=9\r\n",
            "Content-Type: multipart/x-mixed-replace\r\nCache-Control: max-age=9\r\n",
            "Content-Type: text/plain\r\nCache-Control: max-age=9\r\n",
            "Content-Type: text/css, text/html\r\nCache-Control: max-age=9\r\n",
            "Content-Type: text/css;a=b, text/html\r\nCache-Control: max-age=9\r\n",
            "Content-Type: text/css\r\nContent-Type: text/html\r\nCache-Control: max-age=9\r\n",
            "Content-Type: image/png\r\nRefresh: 0;url=/x\r\nCache-Control: max-age=9\r\n",
            "Content-Type:\r\nCache-Control: max-age=9\r\n",
            "Content-Type: text/html\r\nCache-Control: max-age=9, a=\", no-store, \"\r\n",
            "Content-Type: text/html\r\nCache-Control: no-stores\r\n",
        ] {
            assert_eq!(caching(200, lines), Caching::Asked, "{lines}");
            assert_eq!(caching(404, lines), Caching::Asked, "{lines}");
        }
        for status in [300, 301, 308, 410] {
            assert_eq!(caching(status, "Cache-Control: no-store\r\n"), Caching::AsSaid, "{status}");
            assert_eq!(caching(status, "Location: /x\r\n"), Caching::Asked, "{status}");
        }
        for status in [300, 301, 302, 307, 308] {
            let lines = "Content-Type: image/png\r\nCache-Control: max-age=9\r\nLocation: /x\r\n";
            assert_eq!(caching(status, lines), Caching::Asked, "{status}");
        }
    }

    #[test]
    fn the_parts_of_a_page_are_kept_as_the_workspace_says() {
        for lines in [
            "",
            "Content-Type: text/html\r\n",
            "Content-Type: text/css\r\nCache-Control: max-age=31536000, immutable\r\n",
            "Content-Type: text/javascript; charset=utf-8\r\nCache-Control: max-age=9\r\n",
            "Content-Type: Image/PNG\r\nCache-Control: max-age=9\r\n",
            "Content-Type: font/woff2\r\nCache-Control: max-age=9\r\n",
            "Content-Type: application/wasm\r\nCache-Control: max-age=9\r\n",
            "Content-Type: text/html\r\nCache-Control: private, No-Store\r\n",
        ] {
            assert_eq!(caching(200, lines), Caching::AsSaid, "{lines}");
        }
    }

    #[test]
    fn an_unchanged_document_does_not_become_one_that_is_kept() {
        for lines in ["", "Content-Type: text/css\r\nCache-Control: max-age=31536000\r\n"] {
            assert_eq!(caching(304, lines), Caching::Removed, "{lines}");
        }
    }
}
