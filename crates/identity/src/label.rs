//! From a claim's value to its DNS label.
//!
//! Subjects tell upper case from lower and DNS does not, and a long or strange
//! subject must not break a name. So a value that is no plain label, or does not
//! fit, gets `---` and a part of its own hash at its end. A value that contains `---`
//! itself never passes unchanged, so no user can choose a value that looks like another's.

use sha2::{Digest as _, Sha256};

use apisix_plugin_runner::upstream::MAX_LABEL;

/// How long a value may be, in Unicode scalar values (OpenID Connect Core 1.0,
/// section 2, gives `sub` 255 ASCII characters).
pub const MAX_VALUE: usize = 255;

/// The separator between the readable part and the hash.
const SEPARATOR: &str = "---";

/// How many hex digits of the SHA-256 a label contains. Two subjects with the same 16 digits can
/// be found in minutes on one core; for 32 digits it takes 2^64 attempts.
///
/// ```
/// use kube_coders_identity::label::HashDigits;
///
/// // One readable character, `---`, and the digits.
/// assert_eq!((HashDigits::Full.min_room(), HashDigits::Short.min_room()), (36, 20));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashDigits {
    /// 32 digits.
    #[default]
    Full,
    /// 16 digits: the names that kube-coders gave before. Use them only to find an old home.
    Short,
}

impl HashDigits {
    /// The number of digits.
    pub const fn count(self) -> usize {
        match self {
            Self::Full => 32,
            Self::Short => 16,
        }
    }

    /// The least room that a label leaves to a value: one readable character, the separator, and
    /// the hash.
    pub const fn min_room(self) -> usize {
        1 + SEPARATOR.len() + self.count()
    }
}

/// The label of a value with the rest of its label around it, or `None` if the
/// value is empty or longer than 255 characters.
///
/// `prefix` and `suffix` have to be parts of a lower-case label and leave room
/// for [`HashDigits::min_room`] bytes; otherwise there is no label.
#[cfg(test)]
pub fn label(prefix: &str, value: &str, suffix: &str) -> Option<String> {
    let mut name = String::new();
    push_label(&mut name, prefix, value, suffix, HashDigits::Full).then_some(name)
}

/// Puts the label of a value, with the rest of its label around it, at the end
/// of a name, and says whether there is one; if not, the name is as it was.
///
/// ```
/// use kube_coders_identity::label::{HashDigits, push_label};
///
/// let mut name = String::new();
/// assert!(push_label(&mut name, "code-", "alice", "", HashDigits::Full));
/// assert_eq!(name, "code-alice");
///
/// // The hash tells `Alice` from `alice`.
/// name.clear();
/// assert!(push_label(&mut name, "code-", "Alice", "", HashDigits::Full));
/// assert_eq!(name, "code-alice---3bc51062973c458d5a6f2d8d64a02324");
/// ```
#[must_use]
pub fn push_label(name: &mut String, prefix: &str, value: &str, suffix: &str, digits: HashDigits) -> bool {
    let room = MAX_LABEL.saturating_sub(prefix.len() + suffix.len());
    if room < digits.min_room() || !length_is_allowed(value) {
        return false;
    }
    name.push_str(prefix);
    if value.len() <= room && is_plain(value.as_bytes()) {
        name.push_str(value);
    } else {
        push_hashed(name, value, room, digits.count());
    }
    name.push_str(suffix);
    true
}

fn length_is_allowed(value: &str) -> bool {
    // A scalar value has one to four bytes, so that most need no count.
    match value.len() {
        0 => false,
        1..=MAX_VALUE => true,
        length => length <= 4 * MAX_VALUE && value.chars().count() <= MAX_VALUE,
    }
}

/// Whether these bytes are a lower-case label without the separator in it.
fn is_plain(value: &[u8]) -> bool {
    let mut hyphens = 0;
    for byte in value {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => hyphens = 0,
            b'-' if hyphens + 1 < SEPARATOR.len() => hyphens += 1,
            _ => return false,
        }
    }
    hyphens == 0 && value.first().is_some_and(|byte| *byte != b'-')
}

fn push_hashed(name: &mut String, value: &str, room: usize, digits: usize) {
    let readable = room - SEPARATOR.len() - digits;
    let start = name.len();
    let mut gap = false;
    for character in value.chars() {
        if !character.is_ascii_alphanumeric() {
            gap = true;
            continue;
        }
        // A hyphen is only written before a character that still fits, so that
        // neither a gap at an end nor the cut leaves one behind.
        let hyphen = gap && name.len() > start;
        if name.len() - start + usize::from(hyphen) >= readable {
            break;
        }
        if hyphen {
            name.push('-');
        }
        gap = false;
        name.push(character.to_ascii_lowercase());
    }
    if name.len() == start {
        name.push('x');
    }
    name.push_str(SEPARATOR);
    for byte in &Sha256::digest(value.as_bytes())[..digits / 2] {
        for digit in [byte >> 4, byte & 15] {
            name.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[track_caller]
    fn check(prefix: &str, value: &str, suffix: &str, expected: Option<&str>) {
        assert_eq!(label(prefix, value, suffix).as_deref(), expected, "{value:?}");
    }

    fn is_label(text: &str) -> bool {
        (1..=MAX_LABEL).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-')
    }

    #[test]
    fn every_vector_gives_its_label() {
        let vectors: Vec<Value> =
            serde_json::from_str(include_str!("../../../tests/vectors/labels.json")).unwrap();
        let mut checked = 0;
        for vector in &vectors {
            let (prefix, suffix) = vector["template"].as_str().unwrap().split_once("{sub}").unwrap();
            // Looking up a claim refuses values that are not texts.
            if let Some(value) = vector["value"].as_str() {
                check(prefix, value, suffix, vector["label"].as_str());
                checked += 1;
            } else {
                assert!(vector["label"].is_null());
            }
        }
        assert!(checked > 40, "only {checked} vectors were checked");
    }

    #[test]
    fn plain_values_stay_as_they_are() {
        check("code-", "alice", "", Some("code-alice"));
        check("", "a--b", "", Some("a--b"));
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        check("code-", "", "", None);
        assert!(label("code-", &"김".repeat(255), "").is_some());
        assert!(label("code-", &"😀".repeat(255), "").is_some());
        check("code-", &"김".repeat(256), "", None);
        check("code-", &"😀".repeat(256), "", None);
        check("code-", &"a".repeat(256), "", None);
    }

    #[test]
    fn a_label_without_room_is_none() {
        assert_eq!(label(&"a".repeat(27), "A", "").map(|label| label.len()), Some(63));
        check(&"a".repeat(28), "A", "", None);
        check(&"a".repeat(30), "a", &"b".repeat(34), None);
    }

    /// The names of versions before, to find an old home.
    #[test]
    fn a_short_hash_has_16_digits_and_the_same_beginning() {
        let made = |digits| {
            let mut name = String::new();
            push_label(&mut name, "code-", "Alice", "", digits).then_some(name)
        };
        let (full, short) = (made(HashDigits::Full).unwrap(), made(HashDigits::Short).unwrap());
        assert_eq!(short, "code-alice---3bc51062973c458d");
        assert!(full.starts_with(&short) && full.len() == short.len() + 16, "{full}");
        let mut name = String::new();
        assert!(push_label(&mut name, &"a".repeat(43), "A", "", HashDigits::Short));
        assert!(!push_label(&mut name, &"a".repeat(44), "A", "", HashDigits::Short));
    }

    #[test]
    fn a_name_without_a_label_is_left_alone() {
        let mut name = "a.".to_owned();
        assert!(!push_label(&mut name, "code-", "", "", HashDigits::Full));
        assert_eq!(name, "a.");
    }

    proptest! {
        #[test]
        fn any_value_gives_a_label_or_none(prefix in "([a-z0-9][-a-z0-9]{0,50})?", value in any::<String>(), suffix in "([-a-z0-9]{0,20}[a-z0-9])?") {
            let made = label(&prefix, &value, &suffix);
            let allowed = (1..=255).contains(&value.chars().count()) && prefix.len() + suffix.len() <= 27;
            prop_assert_eq!(made.is_some(), allowed);
            if let Some(made) = made {
                prop_assert!(is_label(&made), "{}", made);
                prop_assert!(made.starts_with(&prefix) && made.ends_with(&suffix));
            }
        }

        #[test]
        fn values_that_differ_have_labels_that_differ(one in "[-a-cA-C.]{1,70}", flips in any::<u128>()) {
            let other: String = one.chars().enumerate().map(|(at, character)| match flips >> at & 1 {
                1 if character.is_ascii_lowercase() => character.to_ascii_uppercase(),
                1 => character.to_ascii_lowercase(),
                _ => character,
            }).collect();
            prop_assume!(one != other);
            prop_assert_ne!(label("code-", &one, ""), label("code-", &other, ""));
        }

        #[test]
        fn a_value_with_the_separator_never_stays(value in "[a-z0-9]{1,9}-{3,5}[a-z0-9]{1,9}") {
            prop_assert_ne!(label("", &value, ""), Some(value));
        }
    }
}
