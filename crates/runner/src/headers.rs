//! The headers of a frame, looked up without regard to case.

/// The headers of a frame, in its order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers<'f> {
    entries: Vec<(&'f [u8], &'f [u8])>,
    /// The lengths of all names, a bit each. A plugin asks for many headers that are not
    /// there, and most of these are as long as none.
    lengths: u64,
}

impl<'f> Headers<'f> {
    pub(crate) fn new(entries: Vec<(&'f [u8], &'f [u8])>) -> Self {
        let lengths = entries.iter().fold(0, |lengths, (name, _)| lengths | length_bit(name.len()));
        Self { entries, lengths }
    }

    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = (&'f [u8], &'f [u8])> + '_ {
        self.entries.iter().copied()
    }

    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'f [u8]> + Clone + 'a {
        self.candidates(name).iter().filter(move |(other, _)| is_same(other, name)).map(|(_, value)| *value)
    }

    pub(crate) fn first(&self, name: &str) -> Option<&'f [u8]> {
        self.candidates(name).iter().find(|(other, _)| is_same(other, name)).map(|(_, value)| *value)
    }

    /// All headers, or none if no name is as long as this one.
    fn candidates(&self, name: &str) -> &[(&'f [u8], &'f [u8])] {
        if self.lengths & length_bit(name.len()) == 0 { &[] } else { &self.entries }
    }
}

/// The bit of a length. Names of 63 bytes or more share one.
fn length_bit(length: usize) -> u64 {
    1 << length.min(63)
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
    fn names_of_any_length_are_found() {
        let names: Vec<_> = (0..130).map(|length| "a".repeat(length)).collect();
        for there in &names {
            let headers = Headers::new([(there.as_bytes(), &b"1"[..])].to_vec());
            for asked in &names {
                assert_eq!(headers.first(asked).is_some(), asked == there, "{} {}", asked.len(), there.len());
                assert_eq!(headers.named(asked).count(), usize::from(asked == there));
            }
        }
    }

    #[test]
    fn headers_are_found_without_regard_to_case_and_in_order() {
        let headers = Headers::new([(&b"a"[..], &b"1"[..]), (b"B", b"2"), (b"b", b"3")].to_vec());
        assert_eq!(headers.first("b"), Some(&b"2"[..]));
        assert_eq!(headers.named("b").collect::<Vec<_>>(), [b"2", b"3"]);
        assert_eq!(headers.first("c"), None);
        assert_eq!(headers.first("bb"), None);
    }
}
