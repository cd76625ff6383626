//! The id by which a person who was refused and a line of the log find each
//! other.

/// How long an id may be and still be shown, in bytes.
const MAX_LENGTH: usize = 128;

/// The id, if it is one to show: visible ASCII, not too long.
pub(crate) fn sane_request_id(id: &[u8]) -> Option<&str> {
    let sane = (1..=MAX_LENGTH).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(id).ok().filter(|_| sane)
}

/// 32 hexadecimal digits, as the gateway's own ids are.
pub(crate) fn random_request_id() -> String {
    let mut bytes = [0; 16];
    // Without random numbers the id is all zeros: it names a request, it guards nothing.
    let _ = getrandom::fill(&mut bytes);
    format!("{:032x}", u128::from_be_bytes(bytes))
}
