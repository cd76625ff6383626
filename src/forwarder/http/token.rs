//! Tokens, the words of HTTP: methods and names of headers.

/// Whether bytes are a token (RFC 9110, section 5.6.2).
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    const IS_TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 128 {
            table[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let marks = *b"!#$%&'*+-.^_`|~";
        let mut at = 0;
        while at < marks.len() {
            table[marks[at] as usize] = true;
            at += 1;
        }
        table
    };
    !bytes.is_empty() && bytes.iter().all(|byte| IS_TOKEN[usize::from(*byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_letters_digits_and_some_marks() {
        let tokens: Vec<u8> = (0..=u8::MAX).filter(|byte| is_token(&[*byte])).collect();
        assert_eq!(
            str::from_utf8(&tokens).unwrap(),
            "!#$%&'*+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz|~"
        );
        assert!(is_token(b"x-a") && !is_token(b"") && !is_token(b"x a"));
    }
}
