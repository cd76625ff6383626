//! The head of a request or of a response, cut into its parts.
//!
//! If two servers in a row read a head in different ways, a client can make one of them
//! see two requests where the other sees one. So the parser is strict: a line ends with CR
//! and LF, a field has no space before its colon and does not continue on a second line,
//! and a head contains only bytes that it may have (RFC 9112, sections 2.2, 3, 4 and 5).

use kube_coders_identity::parse_digits;
use memchr::{memchr, memchr_iter};
use thiserror::Error;

use super::token::is_token;

/// How many header lines a head may have.
pub(crate) const MAX_FIELDS: usize = 200;

/// How many bytes a head may have. More than the gateway takes: nginx reads at
/// most 4 × 8 KiB of headers.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// Why bytes are not a valid head.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum HeadError {
    #[error("the head is longer than {MAX_HEAD} bytes")]
    TooLong,
    #[error("the head has more than {MAX_FIELDS} header lines")]
    TooManyFields,
    #[error("a line of the head ends with a bare LF")]
    BareLineFeed,
    #[error("the head contains a control character")]
    Control,
    #[error("the first line is not {0}")]
    FirstLine(&'static str),
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    #[error("a header line has no name, or a space before its colon")]
    FieldName,
    #[error("a header continues on a second line")]
    Folded,
}

/// The version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http10,
    Http11,
}

/// A header line, as a whole and in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeaderField<'b> {
    /// Without its end.
    pub(crate) line: &'b [u8],
    pub(crate) name: &'b [u8],
    /// Without the spaces around it.
    pub(crate) value: &'b [u8],
}

impl HeaderField<'_> {
    /// Whether the name is this one, which is given in lower case.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// Finds the end of a head while its bytes come in.
#[derive(Debug, Default)]
pub(crate) struct HeadEnd {
    /// How many bytes were searched.
    looked_at: usize,
    /// The start of the current line.
    line_start: usize,
    lines: usize,
}

impl HeadEnd {
    /// The length of the head at the start of these bytes, once it is complete. The bytes
    /// are those of the last call, with more after them.
    pub(crate) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, HeadError> {
        for at in memchr_iter(b'\n', &bytes[self.looked_at..]) {
            let end = self.looked_at + at;
            let line = &bytes[self.line_start..end];
            if line.last() != Some(&b'\r') {
                return Err(HeadError::BareLineFeed);
            }
            self.line_start = end + 1;
            if line.len() == 1 {
                // An empty first line is found too, and rejected when the head is parsed.
                return match self.line_start <= MAX_HEAD {
                    true => Ok(Some(self.line_start)),
                    false => Err(HeadError::TooLong),
                };
            }
            self.lines += 1;
            if self.lines > MAX_FIELDS + 1 {
                return Err(HeadError::TooManyFields);
            }
        }
        self.looked_at = bytes.len();
        if bytes.len() >= MAX_HEAD { Err(HeadError::TooLong) } else { Ok(None) }
    }
}

/// A request's head.
#[derive(Debug)]
pub(crate) struct RawRequestHead<'b> {
    pub(crate) method: &'b [u8],
    pub(crate) target: &'b [u8],
    pub(crate) version: HttpVersion,
    pub(crate) fields: Vec<HeaderField<'b>>,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct RawResponseHead<'b> {
    pub(crate) version: HttpVersion,
    pub(crate) status: u16,
    /// The status and the reason, as they were sent.
    pub(crate) status_and_reason: &'b [u8],
    pub(crate) fields: Vec<HeaderField<'b>>,
}

impl<'b> RawRequestHead<'b> {
    /// Cuts a whole head, its last line with it.
    pub(crate) fn parse(head: &'b [u8]) -> Result<Self, HeadError> {
        const FORM: HeadError =
            HeadError::FirstLine("a method, a target and a version with one space between them");
        let (line, fields) = first_line_and_fields(head, FORM)?;
        let space = memchr(b' ', line).ok_or(FORM)?;
        let (method, rest) = (&line[..space], &line[space + 1..]);
        let space = memchr(b' ', rest).ok_or(FORM)?;
        let (target, version) = (&rest[..space], &rest[space + 1..]);
        // Some servers split at a tab, and a fragment is never sent to a server.
        let is_cut = |byte: &u8| matches!(byte, b'\t' | b'#');
        if !is_token(method) || target.is_empty() || target.iter().any(is_cut) {
            return Err(FORM);
        }
        Ok(Self { method, target, version: self::version(version)?, fields })
    }
}

impl<'b> RawResponseHead<'b> {
    /// Cuts a whole head, its last line with it.
    pub(crate) fn parse(head: &'b [u8]) -> Result<Self, HeadError> {
        const FORM: HeadError = HeadError::FirstLine("a version and a status with a space between them");
        let (line, fields) = first_line_and_fields(head, FORM)?;
        let (version, rest) = line.split_at_checked("HTTP/1.1".len()).ok_or(FORM)?;
        let version = self::version(version)?;
        let status_and_reason = rest.strip_prefix(b" ").ok_or(FORM)?;
        let (digits, reason) = status_and_reason.split_at_checked(3).ok_or(FORM)?;
        let status = parse_digits(digits).filter(|status| *status >= 100).ok_or(FORM)?;
        if !(reason.is_empty() || reason.starts_with(b" ")) {
            return Err(FORM);
        }
        Ok(Self { version, status, status_and_reason, fields })
    }
}

fn first_line_and_fields(head: &[u8], form: HeadError) -> Result<(&[u8], Vec<HeaderField<'_>>), HeadError> {
    let mut lines = Lines(head);
    let first = lines.next().filter(|line| !line.is_empty()).ok_or(form)?;
    if has_control(first) {
        return Err(HeadError::Control);
    }
    let mut fields = Vec::with_capacity(32);
    for line in lines {
        if line.is_empty() {
            break;
        }
        fields.push(field(line)?);
    }
    Ok((first, fields))
}

/// The lines of a head whose end was found, without their ends.
struct Lines<'b>(&'b [u8]);

impl<'b> Iterator for Lines<'b> {
    type Item = &'b [u8];

    fn next(&mut self) -> Option<&'b [u8]> {
        let end = memchr(b'\n', self.0)?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// Cuts one header line, without its end.
pub(crate) fn field(line: &[u8]) -> Result<HeaderField<'_>, HeadError> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HeadError::Folded);
    }
    let colon = memchr(b':', line).ok_or(HeadError::FieldName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err(HeadError::FieldName);
    }
    if has_control(value) {
        return Err(HeadError::Control);
    }
    Ok(HeaderField { line, name, value: trim(value) })
}

/// Whether bytes contain a control character other than a tab. CR and LF would begin a
/// line for another server, and NUL would end a text.
fn has_control(bytes: &[u8]) -> bool {
    // Without a branch per byte, the compiler checks many bytes at once.
    bytes.iter().fold(false, |found, byte| found | ((*byte < b' ') & (*byte != b'\t')) | (*byte == 0x7f))
}

/// Without the spaces and tabs around it.
fn trim(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

fn version(text: &[u8]) -> Result<HttpVersion, HeadError> {
    match text {
        b"HTTP/1.1" => Ok(HttpVersion::Http11),
        b"HTTP/1.0" => Ok(HttpVersion::Http10),
        _ => Err(HeadError::Version),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The head at the start of these bytes, if it is whole.
    fn whole(bytes: &[u8]) -> Result<Option<&[u8]>, HeadError> {
        Ok(HeadEnd::default().find(bytes)?.map(|length| &bytes[..length]))
    }

    fn request(text: &str) -> Result<RawRequestHead<'_>, HeadError> {
        RawRequestHead::parse(whole(text.as_bytes())?.expect("a whole head"))
    }

    fn response(text: &str) -> Result<RawResponseHead<'_>, HeadError> {
        RawResponseHead::parse(whole(text.as_bytes())?.expect("a whole head"))
    }

    #[track_caller]
    fn refused(lines: &str, expected: &str) {
        let error = request(&format!("GET / HTTP/1.1\r\n{lines}\r\n")).unwrap_err();
        assert_eq!(error.to_string(), expected, "{lines:?}");
        let error = response(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).unwrap_err();
        assert_eq!(error.to_string(), expected, "{lines:?}");
    }

    #[test]
    fn a_request_is_cut_into_its_parts() {
        let head = request("GET /a?b HTTP/1.1\r\nHost: h\r\nx-A:\t b c \r\nEmpty:\r\n\r\nbody").unwrap();
        assert_eq!(
            (head.method, head.target, head.version),
            (&b"GET"[..], &b"/a?b"[..], HttpVersion::Http11)
        );
        let fields: Vec<_> = head.fields.iter().map(|field| (field.line, field.name, field.value)).collect();
        let expected: [(&[u8], &[u8], &[u8]); 3] =
            [(b"Host: h", b"Host", b"h"), (b"x-A:\t b c ", b"x-A", b"b c"), (b"Empty:", b"Empty", b"")];
        assert_eq!(fields, expected);
        assert!(head.fields[0].is("host") && !head.fields[0].is("hos"));
    }

    #[test]
    fn a_response_is_cut_into_its_parts() {
        for (line, version, status, words) in [
            ("HTTP/1.1 200 OK", HttpVersion::Http11, 200, "200 OK"),
            ("HTTP/1.0 404 Not  Found", HttpVersion::Http10, 404, "404 Not  Found"),
            ("HTTP/1.1 299 ", HttpVersion::Http11, 299, "299 "),
            ("HTTP/1.1 204", HttpVersion::Http11, 204, "204"),
            ("HTTP/1.1 999 \u{fc}", HttpVersion::Http11, 999, "999 \u{fc}"),
        ] {
            let text = format!("{line}\r\nA: b\r\n\r\n");
            let head = response(&text).unwrap();
            assert_eq!((head.version, head.status), (version, status));
            assert_eq!((head.status_and_reason, head.fields.len()), (words.as_bytes(), 1));
        }
    }

    #[test]
    fn first_lines_are_of_one_form() {
        let form = "the first line is not a method, a target and a version with one space between them";
        for line in
            ["GET", "GET /", "GET  / HTTP/1.1", " GET / HTTP/1.1", "G(T / HTTP/1.1", "GET\t/ HTTP/1.1"]
        {
            let error = request(&format!("{line}\r\n\r\n")).unwrap_err().to_string();
            assert_eq!(error, form, "{line:?}");
        }
        for line in
            ["GET / HTTP/1.1 ", "GET / HTTP/1.2", "GET / http/1.1", "GET / a HTTP/1.1", "GET / HTTP/2"]
        {
            assert_eq!(request(&format!("{line}\r\n\r\n")).unwrap_err(), HeadError::Version, "{line:?}");
        }
        for line in
            ["HTTP/1.1", "HTTP/1.1  200", "HTTP/1.1 20", "HTTP/1.1 099 A", "HTTP/1.1 2000", "HTTP/1.1 200OK"]
        {
            let error = response(&format!("{line}\r\n\r\n")).unwrap_err().to_string();
            assert_eq!(
                error, "the first line is not a version and a status with a space between them",
                "{line:?}"
            );
        }
        assert_eq!(response("HTTP/2.0 200 OK\r\n\r\n").unwrap_err(), HeadError::Version);
        assert!(matches!(request("\r\nGET / HTTP/1.1\r\n\r\n"), Err(HeadError::FirstLine(_))));
    }

    #[test]
    fn an_ambiguous_head_is_refused() {
        let name = "a header line has no name, or a space before its colon";
        let control = "the head contains a control character";
        refused("Host : h\r\n", name);
        refused("Host\r\n", name);
        refused(": h\r\n", name);
        refused("Ho st: h\r\n", name);
        refused("H\u{f6}st: h\r\n", name);
        refused("A: b\r\n c\r\n", "a header continues on a second line");
        refused("A: b\r\n\tc: d\r\n", "a header continues on a second line");
        refused("A: b\rc: d\r\n", control);
        refused("A: b\r\r\n", control);
        refused("A: b\0\r\n", control);
        refused("A: \u{7f}\r\n", control);
        refused("A: b\nc: d\r\n", "a line of the head ends with a bare LF");
        refused("A: b\n", "a line of the head ends with a bare LF");
        assert_eq!(request("GET /\0 HTTP/1.1\r\n\r\n").unwrap_err(), HeadError::Control);
        assert_eq!(request("GET /\r HTTP/1.1\r\n\r\n").unwrap_err(), HeadError::Control);
        assert_eq!(whole(b"GET / HTTP/1.1\n"), Err(HeadError::BareLineFeed));
        assert_eq!(whole(b"\n"), Err(HeadError::BareLineFeed));
    }

    #[test]
    fn heads_are_bounded() {
        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(request(&fields(MAX_FIELDS)).unwrap().fields.len(), MAX_FIELDS);
        assert_eq!(whole(fields(MAX_FIELDS + 1).as_bytes()), Err(HeadError::TooManyFields));
        let long = |length: usize| {
            let around = "GET / HTTP/1.1\r\nA: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(length - around))
        };
        assert_eq!(request(&long(MAX_HEAD)).unwrap().fields.len(), 1);
        assert_eq!(whole(long(MAX_HEAD + 1).as_bytes()), Err(HeadError::TooLong));
        assert_eq!(whole(&[b'a'; MAX_HEAD]), Err(HeadError::TooLong));
        assert_eq!(HeadError::TooLong.to_string(), "the head is longer than 65536 bytes");
        assert_eq!(HeadError::TooManyFields.to_string(), "the head has more than 200 header lines");
    }

    proptest! {
        #[test]
        fn a_head_is_found_however_it_comes_in(
            text in "(GET / HTTP/1\\.1|HTTP/1\\.1 200 OK)(\r\n[a-z]{1,3}: [a-z \t\r\n]{0,5}){0,4}\r\n(\r\n)?[a-z\r\n]{0,5}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([bytes.len()]).collect();
            cuts.sort_unstable();
            let mut end = HeadEnd::default();
            let in_pieces = cuts.iter().map(|cut| end.find(&bytes[..*cut])).find(|found| *found != Ok(None));
            prop_assert_eq!(in_pieces.unwrap_or(Ok(None)), HeadEnd::default().find(bytes));
        }

        #[test]
        fn any_bytes_are_a_head_or_refused(bytes in any::<Vec<u8>>()) {
            let mut with_end = bytes;
            with_end.extend_from_slice(b"\r\n\r\n");
            if let Ok(Some(head)) = whole(&with_end) {
                let _ = (RawRequestHead::parse(head), RawResponseHead::parse(head));
            }
        }
    }
}
