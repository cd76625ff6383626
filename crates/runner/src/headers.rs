//! The headers of a frame, looked up without regard to case.

/// The headers of a frame, in its order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers<'f>(Vec<(&'f [u8], &'f [u8])>);

impl<'f> Headers<'f> {
    pub(crate) fn new(headers: Vec<(&'f [u8], &'f [u8])>) -> Self {
        Self(headers)
    }

    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = (&'f [u8], &'f [u8])> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'f [u8]> + Clone + 'a {
        self.0.iter().filter(move |(other, _)| is_same(other, name)).map(|(_, value)| *value)
    }

    pub(crate) fn first(&self, name: &str) -> Option<&'f [u8]> {
        self.0.iter().find(|(other, _)| is_same(other, name)).map(|(_, value)| *value)
    }
}

/// Whether two names are the same without regard to case. Nearly all names of a frame are
/// in lower case already, and comparing bytes is several times as fast.
fn is_same(one: &[u8], other: &str) -> bool {
    let other = other.as_bytes();
    one.len() == other.len() && (one == other || one.eq_ignore_ascii_case(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_without_regard_to_case_and_in_order() {
        let headers = Headers::new([(&b"a"[..], &b"1"[..]), (b"B", b"2"), (b"b", b"3")].to_vec());
        assert_eq!(headers.first("b"), Some(&b"2"[..]));
        assert_eq!(headers.named("b").collect::<Vec<_>>(), [b"2", b"3"]);
        assert_eq!(headers.first("c"), None);
    }
}
