//! A conf, the JSON text of one plugin in a route, read as the plugin's config.

use std::fmt;

use http::HeaderName;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _};
use thiserror::Error;

/// How many characters of a field's path an error shows.
const MAX_FIELD: usize = 200;

/// Why a conf is rejected. It names the field, the position and what was expected, and
/// never shows the conf's content, because a conf may hold a secret.
///
/// ```
/// use apisix_plugin_runner::config::parse_conf;
///
/// #[derive(Debug, serde::Deserialize)]
/// struct LimitConfig { most: u16 }
///
/// let error = parse_conf::<LimitConfig>(br#"{"most": 70000}"#).unwrap_err();
/// assert_eq!((&*error.field, error.position), ("most", Some((1, 14))));
/// assert_eq!(error.message, "invalid value: number, expected a whole number from 0 to 65535");
/// ```
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}{message}{}", FieldPrefix(.field), PositionSuffix(*.position))]
pub struct ConfError {
    /// The path of the field in the conf, empty for the conf itself.
    pub field: String,
    /// What was found and what was expected.
    pub message: String,
    /// Line and column, counted from 1.
    pub position: Option<(usize, usize)>,
}

struct FieldPrefix<'a>(&'a str);

impl fmt::Display for FieldPrefix<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            field => write!(formatter, "{field}: "),
        }
    }
}

struct PositionSuffix(Option<(usize, usize)>);

impl fmt::Display for PositionSuffix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(formatter, " (line {line}, column {column})"),
            None => Ok(()),
        }
    }
}

impl ConfError {
    /// An error about the conf as a whole.
    #[must_use]
    pub fn whole(message: String) -> Self {
        Self { field: String::new(), message, position: None }
    }

    fn from_json(field: String, error: &serde_json::Error) -> Self {
        // The administrator typed the name of an unknown field, so it is shown, escaped and cut.
        let field = if field == "." || field == "?" {
            String::new()
        } else {
            field.escape_debug().take(MAX_FIELD).collect()
        };
        let text = error.to_string();
        let position = (error.line() > 0).then(|| (error.line(), error.column()));
        let suffix = format!(" at line {} column {}", error.line(), error.column());
        let text = text.strip_suffix(&suffix).unwrap_or(&text);
        Self { field, message: without_content(text), position }
    }
}

/// Reads a conf as a config. An empty conf is read as `null`.
///
/// # Errors
///
/// A conf that is not JSON, or that the config can't hold.
///
/// ```
/// let error = apisix_plugin_runner::config::parse_conf::<Vec<u16>>(b"[1, \"two\"]").unwrap_err();
/// let expected = "[1]: invalid type: string, expected a whole number from 0 to 65535 (line 1, column 9)";
/// assert_eq!(error.to_string(), expected);
/// ```
pub fn parse_conf<C: DeserializeOwned>(conf: &[u8]) -> Result<C, ConfError> {
    let conf = if conf.is_empty() { b"null" } else { conf };
    let mut json = serde_json::Deserializer::from_slice(conf);
    let config = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| ConfError::from_json(error.path().to_string(), error.inner()))?;
    json.end().map_err(|error| ConfError::from_json(String::new(), &error))?;
    Ok(config)
}

/// Reads a header's name in a config: `#[serde(deserialize_with = "apisix_plugin_runner::config::header_name")]`.
///
/// # Errors
///
/// A text that is not a header name.
///
/// ```
/// #[derive(serde::Deserialize)]
/// struct GreetConfig {
///     #[serde(deserialize_with = "apisix_plugin_runner::config::header_name")]
///     header: http::HeaderName,
/// }
///
/// let config: GreetConfig = serde_json::from_str(r#"{"header": "X-Name"}"#)?;
/// assert_eq!(config.header, "x-name");
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn header_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HeaderName, D::Error> {
    let text = String::deserialize(deserializer)?;
    HeaderName::try_from(text).map_err(|_| D::Error::custom(crate::changes::ChangeError::Name))
}

/// What is before a type in an error text of serde.
const EXPECTED: &str = ", expected ";

/// A type that serde expected, in JSON's words: it names types of Rust.
fn in_words(expected: &str) -> String {
    let whole = |largest: u64| format!("a whole number from 0 to {largest}");
    match expected {
        "unit" => "null, because the plugin has no settings".to_owned(),
        "a map" => "an object".to_owned(),
        "a sequence" => "a list".to_owned(),
        "u8" => whole(u8::MAX.into()),
        "u16" => whole(u16::MAX.into()),
        "u32" => whole(u32::MAX.into()),
        "u64" | "u128" | "usize" => "a whole number of 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        _ if expected.starts_with("struct ") => "an object".to_owned(),
        _ if expected.starts_with("a tuple") || expected.starts_with("tuple ") => "a list".to_owned(),
        _ => expected.to_owned(),
    }
}

/// An error text of serde without the piece of the conf that it quotes.
///
/// serde writes `invalid type: string "the value", expected …` and `unknown variant
/// `the value`, expected …`. What is expected is the plugin's own text and comes last.
fn without_content(text: &str) -> String {
    let expected = text.rfind(EXPECTED).map(|at| &text[at..]).unwrap_or_default();
    for prefix in ["invalid type: ", "invalid value: "] {
        if let Some(found) = text.strip_prefix(prefix) {
            let kinds = [
                ("string", "string"),
                ("integer", "number"),
                ("floating point", "number"),
                ("boolean", "boolean"),
                ("null", "null"),
                ("map", "object"),
                ("sequence", "list"),
                ("byte array", "list"),
            ];
            let kind = kinds.into_iter().find(|(kind, _)| found.starts_with(kind));
            let kind = kind.map_or("something", |(_, word)| word);
            let expected = expected.strip_prefix(EXPECTED).map(in_words);
            let expected = expected.map(|words| format!("{EXPECTED}{words}")).unwrap_or_default();
            return format!("{prefix}{kind}{expected}");
        }
    }
    for prefix in ["unknown variant", "unknown field"] {
        if text.starts_with(prefix) {
            return format!("{prefix}{expected}");
        }
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Config {
        #[serde(default)]
        header: Option<Name>,
        #[serde(default)]
        mode: Option<Mode>,
        #[serde(default)]
        ports: Vec<u16>,
        #[serde(default)]
        inner: Option<Box<Config>>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Name(#[serde(deserialize_with = "header_name")] HeaderName);

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        One,
        Two,
    }

    #[track_caller]
    fn check(conf: &str, expected: &str) {
        let error = parse_conf::<Config>(conf.as_bytes()).expect_err("refused");
        assert_eq!(error.to_string(), expected);
        assert!(!error.to_string().contains("s3cret"));
    }

    #[test]
    fn a_refused_conf_is_told_by_field_and_position_and_never_by_content() {
        check(
            r#"{"ports": [1, "s3cret"]}"#,
            "ports[1]: invalid type: string, expected a whole number from 0 to 65535 (line 1, column 22)",
        );
        check(
            "{\"ports\":\n[1, 70000]}",
            "ports[1]: invalid value: number, expected a whole number from 0 to 65535 (line 2, column 9)",
        );
        check(r#"{"mode": "s3cret"}"#, "mode: unknown variant, expected `one` or `two` (line 1, column 17)");
        check(
            r#"{"mode": "a, expected s3cret"}"#,
            "mode: unknown variant, expected `one` or `two` (line 1, column 29)",
        );
        check(
            "{\"inner\": {\"head\\ner\": 1}}",
            "inner.head\\ner: unknown field, expected one of `header`, `mode`, `ports`, `inner` (line 1, column 21)",
        );
        check(
            r#"{"header": "s3cret s3cret"}"#,
            "header: not a header name: letters, digits and !#$%&'*+-.^_`|~ only, at least one (line 1, column 27)",
        );
        check(r#"{"ports": []} s3cret"#, "trailing characters (line 1, column 15)");
        check("s3cret", "expected value (line 1, column 1)");
        check("", "invalid type: null, expected an object (line 1, column 4)");
        let unit = parse_conf::<()>(b"{}").unwrap_err().to_string();
        assert_eq!(
            unit,
            "invalid type: object, expected null, because the plugin has no settings (line 1, column 0)"
        );
        check("{\"ports\"", "EOF while parsing an object (line 1, column 8)");
    }
}
