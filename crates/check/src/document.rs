//! A file's documents as trees. Each value knows its place.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::{self, Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error, Spanned};

/// A value and its place in the file.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
    /// Whether a part of the check has looked at this value.
    examined: AtomicBool,
}

impl Node {
    const fn new(value: Value, place: Place) -> Self {
        Self { value, place, examined: AtomicBool::new(false) }
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.count()).sum(),
            _ => 0,
        }
    }
}

/// A line and a column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(Box<str>),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(super) struct Entry {
    name: Box<str>,
    /// The place of the name.
    place: Place,
    node: Node,
}

/// Why a file is neither YAML nor JSON. No content of the file is repeated.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {}, column {}: {why}", .place.line, .place.column)]
pub(super) struct DocumentError {
    place: Place,
    why: &'static str,
}

/// How many values a file may have: those of some 100,000 routes.
pub(super) const MAX_VALUES: usize = 2_000_000;

/// Reads a text's documents; JSON is YAML too.
fn documents(text: &str, max_values: usize) -> Result<Vec<Node>, DocumentError> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        budget: serde_saphyr::budget! {
            max_nodes: max_values,
            max_events: 4 * max_values,
            max_documents: max_values,
            // The other limits also hold for what aliases add to a file.
            enforce_alias_anchor_ratio: false,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(START, |at| Place { line: at.line(), column: at.column() });
        DocumentError { place, why: reason(&error) }
    })
}

const START: Place = Place { line: 1, column: 1 };

/// What is wrong, in our own words: the error's text may quote a secret.
fn reason(error: &Error) -> &'static str {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => reason(error),
        Error::DuplicateMappingKey { .. } => {
            "a name is used twice in one map, and it depends on the reader which of the two counts"
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "more than a configuration has: too many values, too deep, or aliases of aliases"
        }
        Error::ExternalMessage { msg, .. } | Error::Message { msg, .. }
            if msg.contains("recursion limit") =>
        {
            "nested too deeply"
        }
        _ => "neither YAML nor JSON",
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self::new(value, Place { line: referenced.line(), column: referenced.column() }))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.visit_i128(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.visit_i128(value.into())
    }

    // No setting of the gateway's needs the digits that a large number loses here.
    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map: Vec<Entry> = Vec::new();
        while let Some(Node { value: name, place, .. }) = entries.next_key::<Node>()? {
            let name: Box<str> = match name {
                Value::Text(name) => name,
                Value::Bool(name) => name.to_string().into(),
                Value::Number(name) => name.to_string().into(),
                Value::Null => "null".into(),
                _ => return Err(A::Error::custom("a name is no text")),
            };
            map.push(Entry { name, place, node: entries.next_value()? });
        }
        Ok(Value::Map(map))
    }
}

/// The value of what is missing.
static NOTHING: Node = Node::new(Value::Null, START);

/// A document of a file, or one that is written in a text of another document.
#[derive(Debug)]
pub(super) struct Document<'f> {
    pub(super) file: &'f str,
    /// All of the file, or of the text.
    pub(super) source: Cow<'f, str>,
    pub(super) position: Position,
    /// The way to the text in which it is.
    way: String,
    root: Node,
}

/// Where a document's lines are in its file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Position {
    /// They are the file's own.
    File,
    /// After so many lines and columns of the file.
    Block { lines: u64, columns: u64 },
    /// In a quoted text, at one place.
    Quoted(Place),
}

impl Position {
    fn in_file(self, place: Place) -> Place {
        match self {
            Self::File => place,
            Self::Block { lines, columns } => {
                Place { line: place.line + lines, column: place.column + columns }
            }
            Self::Quoted(place) => place,
        }
    }
}

impl<'f> Document<'f> {
    /// The documents of a file.
    pub(super) fn of_file(file: &'f str, source: &'f str) -> Result<Vec<Self>, DocumentError> {
        let document =
            |root| Self { file, source: source.into(), position: Position::File, way: String::new(), root };
        Ok(documents(source, MAX_VALUES)?.into_iter().map(document).collect())
    }

    /// The documents that a text of this one is, if it is YAML with so many values at most.
    pub(super) fn within(&self, text: &Spot<'_>, max_values: usize) -> Vec<Self> {
        let source = text.text().unwrap_or_default();
        let document = |root| Self {
            file: self.file,
            source: source.to_owned().into(),
            position: self.position_of(text.place, source),
            way: text.path.clone(),
            root,
        };
        documents(source, max_values).unwrap_or_default().into_iter().map(document).collect()
    }

    /// Where the lines of a text are whose name is at this place.
    fn position_of(&self, name: Place, text: &str) -> Position {
        let first = text.lines().position(|line| !line.trim().is_empty()).unwrap_or_default();
        let line_of = |text: &str, at: usize| {
            let line = text.lines().nth(at).unwrap_or_default().trim_end();
            let start = line.trim_start();
            (line.chars().count() - start.chars().count(), start.to_owned())
        };
        let in_text = line_of(text, first);
        let in_source = usize::try_from(name.line).map(|line| line_of(&self.source, line + first));
        match (in_source, self.position) {
            (Ok((indent, line)), Position::File) if line == in_text.1 && !line.is_empty() => {
                Position::Block { lines: name.line, columns: (indent - in_text.0.min(indent)) as u64 }
            }
            _ => Position::Quoted(self.position.in_file(name)),
        }
    }

    /// How many values it has.
    pub(super) fn count(&self) -> usize {
        self.root.count()
    }

    pub(super) fn spot(&self) -> Spot<'_> {
        Spot {
            file: self.file,
            path: self.way.clone(),
            place: self.root.place,
            position: self.position,
            node: &self.root,
        }
    }
}

/// A value within its file, and the way to it through its document.
#[derive(Clone, Debug)]
pub(super) struct Spot<'d> {
    pub(super) file: &'d str,
    pub(super) path: String,
    /// Its place in its document.
    pub(super) place: Place,
    position: Position,
    node: &'d Node,
}

impl<'d> Spot<'d> {
    fn entry(&self, entry: &'d Entry) -> Self {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let path = match (&*self.path, entry.name.bytes().all(plain)) {
            ("", true) => entry.name.to_string(),
            (path, true) => format!("{path}.{}", entry.name),
            (path, false) => format!("{path}[{:?}]", entry.name),
        };
        Self { path, place: entry.place, node: &entry.node, ..*self }
    }

    /// Whether this is a value of another one, or the same.
    pub(super) fn is_within(&self, other: &Spot<'_>) -> bool {
        self.file == other.file && self.path.starts_with(&other.path)
    }

    /// Its place in its file.
    pub(super) fn place_in_file(&self) -> Place {
        self.position.in_file(self.place)
    }

    /// Notes that a part of the check has looked at this value.
    pub(super) fn set_examined(&self) {
        self.node.examined.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_examined(&self) -> bool {
        self.node.examined.load(Ordering::Relaxed)
    }

    /// The value of this name, if this is a map that has one other than null.
    pub(super) fn get(&self, name: &str) -> Option<Self> {
        let Value::Map(entries) = &self.node.value else { return None };
        let entry = entries.iter().find(|entry| &*entry.name == name)?;
        let is_null = matches!(entry.node.value, Value::Null);
        (!is_null).then(|| self.entry(entry))
    }

    /// The value at the end of some names.
    pub(super) fn at(&self, names: &[&str]) -> Option<Self> {
        names.iter().try_fold(self.clone(), |spot, name| spot.get(name))
    }

    /// The place where a value of this name would be, with nothing in it.
    pub(super) fn missing(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { path, node: &NOTHING, ..*self }
    }

    /// The value of this name, or the place where it would be.
    pub(super) fn get_or_missing(&self, name: &str) -> Self {
        self.get(name).unwrap_or_else(|| self.missing(name))
    }

    /// The values of a list. Anything else has none.
    pub(super) fn items(&self) -> Vec<Self> {
        let Value::List(items) = &self.node.value else { return Vec::new() };
        let item = |(at, node): (usize, &'d Node)| Self {
            path: format!("{}[{at}]", self.path),
            place: node.place,
            node,
            ..*self
        };
        items.iter().enumerate().map(item).collect()
    }

    /// The names and values of a map. Anything else has none.
    pub(super) fn entries(&self) -> Vec<(&'d str, Self)> {
        let Value::Map(entries) = &self.node.value else { return Vec::new() };
        entries.iter().map(|entry| (&*entry.name, self.entry(entry))).collect()
    }

    /// The values of the list of this name.
    pub(super) fn items_of(&self, name: &str) -> Vec<Self> {
        self.get(name).map(|list| list.items()).unwrap_or_default()
    }

    /// The names and values of the map of this name.
    pub(super) fn entries_of(&self, name: &str) -> Vec<(&'d str, Self)> {
        self.get(name).map(|map| map.entries()).unwrap_or_default()
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub(super) fn text(&self) -> Option<&'d str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self.node.value {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self.node.value, Value::Bool(true))
    }

    pub(super) fn is_false(&self) -> bool {
        matches!(self.node.value, Value::Bool(false))
    }

    /// Whether the value of this name is true; one that is not there is not.
    pub(super) fn has_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.is_true())
    }

    /// Whether the value of this name is false; one that is not there is not.
    pub(super) fn has_false(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.is_false())
    }

    /// The number of this name.
    pub(super) fn number_of(&self, name: &str) -> Option<f64> {
        self.get(name)?.number()
    }

    /// This text, or the texts of this list.
    pub(super) fn texts_of(&self) -> Vec<&'d str> {
        match self.text() {
            Some(text) => vec![text],
            None => self.items().iter().filter_map(Self::text).collect(),
        }
    }

    /// The same value, told at another line.
    pub(super) fn at_line(&self, line: u64) -> Self {
        Self { place: Place { line, column: 1 }, ..self.clone() }
    }

    /// The text of this name.
    pub(super) fn text_of(&self, name: &str) -> Option<&'d str> {
        self.get(name)?.text()
    }

    /// A text or number of this name, as a text: the gateway takes either for an id.
    pub(super) fn id_of(&self, name: &str) -> Option<String> {
        match &self.get(name)?.node.value {
            Value::Text(text) => Some(text.to_string()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Every name and every single value below, each told at its own place.
    pub(super) fn scalars(&self) -> Vec<Self> {
        let mut found = Vec::new();
        self.each_scalar(&mut found);
        found
    }

    fn each_scalar(&self, found: &mut Vec<Self>) {
        match &self.node.value {
            Value::List(_) => self.items().iter().for_each(|item| item.each_scalar(found)),
            Value::Map(_) => {
                for (_, value) in self.entries() {
                    found.push(value.clone());
                    value.each_scalar(found);
                }
            }
            _ => found.push(Self { place: self.node.place, ..self.clone() }),
        }
    }

    /// Every text below, with the name that it has in its map, if it has one.
    pub(super) fn texts(&self) -> Vec<(Option<&'d str>, Self)> {
        let mut found = Vec::new();
        self.each_text(None, &mut found);
        found
    }

    fn each_text(&self, name: Option<&'d str>, found: &mut Vec<(Option<&'d str>, Self)>) {
        match &self.node.value {
            Value::Text(_) => found.push((name, self.clone())),
            Value::List(_) => self.items().iter().for_each(|item| item.each_text(name, found)),
            Value::Map(_) => {
                for (name, value) in self.entries() {
                    value.each_text(Some(name), found);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(text: &str) -> Document<'_> {
        Document::of_file("a.yaml", text).unwrap().remove(0)
    }

    #[track_caller]
    fn check(text: &str, names: &[&str], expected: (&str, u64, u64)) {
        let document = first(text);
        let spot = document.spot().at(names).unwrap();
        assert_eq!((&*spot.path, spot.place.line, spot.place.column), expected);
    }

    #[test]
    fn a_value_knows_its_way_and_its_line() {
        check("a:\n  b: 1\n", &["a", "b"], ("a.b", 2, 3));
        check("{\"a\": {\n \"b-c\": [1]}}", &["a", "b-c"], ("a.b-c", 2, 2));
        check(
            "nodes:\n  \"127.0.0.1:9181\": 1\n",
            &["nodes", "127.0.0.1:9181"],
            ("nodes[\"127.0.0.1:9181\"]", 2, 3),
        );
        let document = first("a:\n- b\n- c: d\n");
        let spot = document.spot();
        let items = spot.get("a").unwrap().items();
        assert_eq!((&*items[1].path, items[1].place.line), ("a[1]", 3));
        assert_eq!(items[1].text_of("c"), Some("d"));
    }

    #[test]
    fn null_is_not_there() {
        let document = first("a: null\nb: ~\nc:\n");
        let spot = document.spot();
        assert!(["a", "b", "c", "d"].iter().all(|name| spot.get(name).is_none()));
        assert_eq!(spot.get_or_missing("a").path, "a");
    }

    #[test]
    fn large_numbers_are_numbers() {
        for text in ["7", "-7", "0.5", "18446744073709551616", "-99999999999999999999", "1e300"] {
            let line = format!("a: {text}\n");
            let number = first(&line).spot().get("a").unwrap().number();
            assert_eq!(number, Some(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn several_documents_are_several() {
        assert_eq!(documents("a: 1\n---\nb: 2\n", MAX_VALUES).unwrap().len(), 2);
    }

    #[test]
    fn an_invalid_document_is_reported_by_its_place_without_its_content() {
        for (text, expected) in [
            ("a: [1\nb: s3cret\n", "line 2, column 2: neither YAML nor JSON"),
            (
                "a: s3cret\na: s3cret\n",
                "line 2, column 1: a name is used twice in one map, and it depends on the reader which of the two counts",
            ),
        ] {
            assert_eq!(documents(text, MAX_VALUES).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn depth_ends_and_length_hardly() {
        for text in ["[".repeat(100_000), format!("{}{}", "[".repeat(5000), "]".repeat(5000))] {
            let error = documents(&text, MAX_VALUES).unwrap_err().to_string();
            assert!(error.ends_with("nested too deeply"), "{error}");
        }
        let long = "a: [1, 2, 3, 4, 5, 6, 7]\n---\n".repeat(1000);
        assert_eq!(documents(&long, MAX_VALUES).unwrap().len(), 1000);
        let aliases = format!("a: &a 1\nb: [{}]\n", "*a, ".repeat(1000));
        assert_eq!(documents(&aliases, MAX_VALUES).unwrap().len(), 1);
    }

    #[test]
    fn aliases_of_aliases_end() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", before.trim_end_matches(", ")));
        }
        let error = documents(&text, MAX_VALUES).unwrap_err().to_string();
        assert!(error.ends_with("aliases of aliases"), "{error}");
    }
}
