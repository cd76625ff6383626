//! What the fuzz targets in `tests/fuzz` try: that nothing which a client or a
//! workspace sends ends the process, and that what comes of it keeps its promises.

use std::sync::LazyLock;

use jsonwebtoken::DecodingKey;

use crate::forwarder::fuzzing as forwarder;
use crate::resolver::fuzzing as resolver;
use apisix_plugin_runner::HostName;
use kube_coders_identity::fuzzing as inner;

/// An `X-Userinfo`: claims of a subject, or refused.
pub fn userinfo(data: &[u8]) {
    if let Some(subject) = inner::userinfo(data) {
        assert!((1..=255).contains(&subject.chars().count()), "{subject:?}");
    }
}

/// A token. Its content does not matter, because it has no valid signature.
pub fn token(data: &[u8]) {
    // The public key of RFC 8037, appendix A.2. No fuzzer guesses a signature of its
    // private half, which the appendix also contains.
    static KEY: LazyLock<DecodingKey> = LazyLock::new(|| {
        DecodingKey::from_ed_components("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").expect("a key")
    });
    assert!(!inner::token_is_believed(data, &KEY), "{}", data.escape_ascii());
}

/// A template, a line feed, and a value: a host name, or refused.
pub fn template(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (template, value) = text.split_once('\n').unwrap_or((text, "alice"));
    if let Some(host) = inner::rendered(template, value) {
        assert_eq!(host.parse::<HostName>().map(|name| name.to_string()).as_deref(), Ok(&*host));
    }
}

/// A request's or a response's head, or chunks: what goes out says what came in.
pub fn head(data: &[u8]) {
    forwarder::request_head(data);
    forwarder::response_head(data);
    forwarder::chunks(data);
}

/// The bytes of one direction of a WebSocket.
pub fn websocket(data: &[u8]) {
    forwarder::websocket(data);
}

/// A hosts file.
pub fn hosts(data: &[u8]) {
    resolver::hosts(&String::from_utf8_lossy(data));
}

/// A file of a gateway's configuration: findings with a place in it, or refused.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for line in kube_coders_check::fuzzing::finding_lines(text) {
        // YAML takes a carriage return alone for the end of a line, too.
        let lines = text.bytes().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64 + 1;
        assert!((1..=lines).contains(&line), "line {line} of {lines}");
    }
}

/// The values of `Cookie` headers, one a line.
pub fn cookies(data: &[u8]) {
    let headers: Vec<_> = data.split(|byte| *byte == b'\n').collect();
    let before: Vec<_> = headers.iter().flat_map(|header| pairs(header)).collect();
    let after = match apisix_plugin_runner::fuzzing::edited_cookies(&headers) {
        None => before.clone(),
        // What no header can hold goes as a whole.
        Some(cookies) if cookies.is_empty() && data.iter().any(|byte| matches!(byte, b'\r' | b'\0')) => {
            return;
        }
        Some(cookies) => {
            assert!(
                apisix_plugin_runner::fuzzing::edited_cookies(&[&cookies]).is_none(),
                "{}",
                cookies.escape_ascii()
            );
            pairs(&cookies)
        }
    };
    let expected: Vec<_> = before.into_iter().filter(|pair| !is_session(pair)).collect();
    assert_eq!(after, expected, "{}", data.escape_ascii());
}

/// The cookies of a header, as a server reads them.
fn pairs(header: &[u8]) -> Vec<Vec<u8>> {
    let pairs = header.split(|byte| *byte == b';').map(|pair| pair.trim_ascii().to_vec());
    pairs.filter(|pair| !pair.is_empty()).collect()
}

fn is_session(pair: &[u8]) -> bool {
    let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
    match name.strip_prefix(b"session") {
        Some(rest) => {
            let number = rest.strip_prefix(b"_").unwrap_or(rest);
            rest.is_empty() || !number.is_empty() && number.iter().all(u8::is_ascii_digit)
        }
        None => false,
    }
}
