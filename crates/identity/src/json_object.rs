//! JSON from others that must be an object.

use serde::de::{DeserializeOwned, Error as _};

/// Reads a JSON object. Serde would also read an array, as the fields in their order.
pub(super) fn object_from_slice<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    // Serde's JSON does not look into the strings that it reads over.
    let text = str::from_utf8(json).map_err(serde_json::Error::custom)?;
    if !text.trim_ascii_start().starts_with('{') {
        return Err(serde_json::Error::custom("not a JSON object"));
    }
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Pair {
        a: String,
        b: u8,
    }

    #[test]
    fn an_array_is_no_object() {
        let read = |json: &[u8]| object_from_slice::<Pair>(json).ok();
        assert_eq!(read(b" \n{\"a\": \"x\", \"b\": 1}"), Some(Pair { a: "x".to_owned(), b: 1 }));
        let wrong: [&[u8]; 6] = [
            b"[\"x\", 1]",
            b" [\"x\", 1]",
            b"",
            b"null",
            b"{\"a\": \"x\", \"b\": 1, \"c\": \"\xff\"}",
            b"{} {}",
        ];
        for json in wrong {
            assert_eq!(read(json), None, "{json:?}");
        }
    }
}
