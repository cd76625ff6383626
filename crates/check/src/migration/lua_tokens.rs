//! The tokens of a Lua function, as far as a name that it puts together needs them.

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LuaToken<'l> {
    /// A name or a keyword.
    Name(&'l str),
    /// A text without escapes.
    Text(&'l str),
    Number(&'l str),
    /// `..`, which joins texts.
    Join,
    /// Another symbol, one character of it; `…` for three dots.
    Symbol(char),
    /// A text with escapes, or one without an end.
    OtherText,
}

/// The tokens of a function. Comments and spaces are left out.
pub(super) fn tokens(text: &str) -> Vec<LuaToken<'_>> {
    let (mut tokens, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let length;
        if let Some(comment) = rest.strip_prefix("--") {
            length = 2 + long_bracket(comment)
                .map_or_else(|| comment.find('\n').unwrap_or(comment.len()), |long| long.whole);
        } else if let Some(long) = long_bracket(rest) {
            tokens.push(LuaToken::Text(long.inside));
            length = long.whole;
        } else if first == '"' || first == '\'' {
            let token;
            (token, length) = quoted(&rest[1..], first);
            tokens.push(token);
        } else if first.is_ascii_digit() {
            length = end_of(rest, |character| character.is_ascii_alphanumeric() || character == '.');
            tokens.push(LuaToken::Number(&rest[..length]));
        } else if first.is_ascii_alphabetic() || first == '_' {
            length = end_of(rest, |character| character.is_ascii_alphanumeric() || character == '_');
            tokens.push(LuaToken::Name(&rest[..length]));
        } else if rest.starts_with("...") {
            length = 3;
            tokens.push(LuaToken::Symbol('…'));
        } else if rest.starts_with("..") {
            length = 2;
            tokens.push(LuaToken::Join);
        } else {
            length = first.len_utf8();
            tokens.push(LuaToken::Symbol(first));
        }
        rest = rest[length..].trim_start();
    }
    tokens
}

fn end_of(text: &str, is_part: impl Fn(char) -> bool) -> usize {
    text.find(|character| !is_part(character)).unwrap_or(text.len())
}

/// A text after its first quote, and its length with both quotes.
fn quoted(text: &str, quote: char) -> (LuaToken<'_>, usize) {
    let mut is_escaped = false;
    let mut has_escapes = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => (is_escaped, has_escapes) = (true, true),
            '\n' => return (LuaToken::OtherText, at + 1),
            _ if character == quote => {
                let token = if has_escapes { LuaToken::OtherText } else { LuaToken::Text(&text[..at]) };
                return (token, at + 2);
            }
            _ => {}
        }
    }
    (LuaToken::OtherText, text.len() + 1)
}

/// A text between long brackets, such as `[[…]]` or `[=[…]=]`.
struct LongBracket<'l> {
    inside: &'l str,
    /// The length with the brackets.
    whole: usize,
}

fn long_bracket(text: &str) -> Option<LongBracket<'_>> {
    let rest = text.strip_prefix('[')?;
    let level = end_of(rest, |character| character == '=');
    let inside = rest[level..].strip_prefix('[')?;
    let end = format!("]{}]", "=".repeat(level));
    let length = inside.find(&end)?;
    Some(LongBracket { inside: &inside[..length], whole: 2 * end.len() + length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_texts_and_joins_are_told_apart() {
        use LuaToken::{Join, Name, Number, OtherText, Symbol, Text};
        let check = |text: &str, expected: &[LuaToken<'_>]| assert_eq!(tokens(text), expected, "{text}");
        check(
            "local h = \"a\"..b.c",
            &[Name("local"), Name("h"), Symbol('='), Text("a"), Join, Name("b"), Symbol('.'), Name("c")],
        );
        check("x -- y .. z\n..'q'", &[Name("x"), Join, Text("q")]);
        check("--[[ a\nb ]] c --[==[ ]] ]==] d", &[Name("c"), Name("d")]);
        check("[[a\"b]] [=[c]]d]=]", &[Text("a\"b"), Text("c]]d")]);
        check("'a\\'b' \"open", &[OtherText, OtherText]);
        check(
            "f(...) 8443 1.5",
            &[Name("f"), Symbol('('), Symbol('…'), Symbol(')'), Number("8443"), Number("1.5")],
        );
        check("a['sub']", &[Name("a"), Symbol('['), Text("sub"), Symbol(']')]);
        check("", &[]);
    }
}
