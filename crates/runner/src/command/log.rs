//! The log on standard error.

use std::fmt;
use std::io::IsTerminal as _;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::call_context;

/// How many lines of the log wait for the reader of standard error. A line has some
/// hundred bytes.
const QUEUED_LINES: usize = 8192;

/// How many bytes of a line's message and fields are written. A certificate or an error of a
/// library can be long.
const MAX_SHOWN: usize = 16 * 1024;

/// Libraries whose lines below `warn` are only shown if a directive names the library, or
/// at the level `trace`.
const CHATTY: [&str; 9] = [
    "h2",
    "hickory_net",
    "hickory_proto",
    "hickory_resolver",
    "hyper",
    "hyper_util",
    "kube_client",
    "reqwest",
    "rustls",
];

/// Which lines go to the log.
///
/// ```
/// use apisix_plugin_runner::command::LogFilter;
///
/// assert!(LogFilter::parse("info,hello=debug").is_ok());
/// assert!(LogFilter::parse("loud").is_err());
/// ```
#[derive(Clone, Debug)]
pub struct LogFilter(Targets);

impl LogFilter {
    /// Reads a level (`error`, `warn`, `info`, `debug`, `trace`, `off`), directives for
    /// single modules (`hello=debug`), or both, separated by commas: `info,hello=debug`.
    ///
    /// # Errors
    ///
    /// A text that is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            "not a level (error, warn, info, debug, trace), a directive such as hello=debug, or a \
                        list of them separated by commas"
                .to_owned()
        };
        let is_level = |level: &str| {
            ["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str())
        };
        let is_directive = |part: &str| match part.split_once('=') {
            Some((target, level)) => !target.is_empty() && is_level(level),
            None => is_level(part),
        };
        if !text.split(',').all(is_directive) {
            return Err(wrong());
        }
        let typed: Targets = text.parse().map_err(|_| wrong())?;
        let general = typed.default_level().unwrap_or(LevelFilter::INFO);
        let named: Vec<_> = typed.iter().collect();
        let mut targets = Targets::new().with_default(general);
        if general < LevelFilter::TRACE {
            targets = targets.with_targets(CHATTY.map(|library| (library, general.min(LevelFilter::WARN))));
        }
        Ok(Self(targets.with_targets(named)))
    }
}

/// The subscriber of a program's log. Lines that are still queued are written when it is
/// dropped.
///
/// ```
/// use apisix_plugin_runner::command::{LogFilter, LogWriter};
///
/// # fn main() -> Result<(), String> {
/// let _written = LogWriter::install(&LogFilter::parse("info,hello=debug")?);
/// tracing::info!("the log is on standard error");
/// # Ok(())
/// # }
/// ```
pub struct LogWriter {
    _written: WorkerGuard,
}

impl LogWriter {
    /// Installs a `tracing` subscriber that writes to standard error.
    ///
    /// Lines wait in a queue. If nothing reads standard error and the queue is full, lines
    /// are dropped: a gateway that does not read the log must not stop the calls that it
    /// waits for.
    ///
    /// # Panics
    ///
    /// If the process has a subscriber already.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // the one place that installs the subscriber
    pub fn install(filter: &LogFilter) -> Self {
        let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUED_LINES);
        let (queue, written) = queue.finish(std::io::stderr());
        let lines = layer()
            // At the end of a drain nothing may read standard error any more, and a complaint
            // about that would end the writer's thread.
            .log_internal_errors(false)
            .with_writer(queue)
            .with_ansi(std::io::stderr().is_terminal())
            .fmt_fields(QuotedFields)
            .event_format(Line);
        call_context::read_from_now_on();
        tracing_subscriber::registry().with(lines).with(filter.0.clone()).init();
        Self { _written: written }
    }
}

/// One line of the log: time, level, call, module, message, fields.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (dim, plain) = if writer.has_ansi_escapes() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        write!(writer, "{dim}")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "{plain} {:>5} ", event.metadata().level())?;
        call_context::write_current(&mut writer)?;
        write!(writer, "{dim}{}:{plain} ", event.metadata().target())?;
        // The fields have no colours, so that every escape sequence in them is from outside.
        let mut fields = String::new();
        context.format_fields(Writer::new(&mut fields), event)?;
        write_in_one_line(&mut writer, &fields)?;
        writeln!(writer)
    }
}

/// Writes the message, and after it each field as `name=value`. Texts have quotes around them, and
/// so has every other value that is not one word, with `\"` and `\\` inside: programs can tell
/// where it ends.
struct QuotedFields;

impl<'w> FormatFields<'w> for QuotedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = QuotingVisitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

/// Errors, which have quotes around them even if they are one word.
const QUOTED: [&str; 3] = ["reason", "error", "failure"];

struct QuotingVisitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl QuotingVisitor<'_> {
    fn write(&mut self, field: &Field, value: &str) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        let name = field.name();
        match name {
            "message" => self.writer.write_str(value),
            _ if is_quoted(value) => write!(self.writer, "{name}={value}"),
            _ if QUOTED.contains(&name) || !is_word(value) => write!(self.writer, "{name}={value:?}"),
            _ => write!(self.writer, "{name}={value}"),
        }
    }
}

impl Visit for QuotingVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.result = self.result.and_then(|()| self.write(field, &text));
    }
}

fn is_word(value: &str) -> bool {
    !value.is_empty()
        && value.chars().all(|character| {
            !character.is_whitespace() && !character.is_control() && !matches!(character, '"' | '=')
        })
}

/// Whether a value is a text in quotes, as `Debug` writes it.
fn is_quoted(value: &str) -> bool {
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let mut is_escaped = false;
    inner.is_some_and(|inner| {
        let has_bare_quote = inner.chars().any(|character| {
            let is_bare = character == '"' && !is_escaped;
            is_escaped = character == '\\' && !is_escaped;
            is_bare
        });
        !has_bare_quote && !is_escaped
    })
}

/// Writes text without the characters that could end its line, or show it as another text: what
/// certificates, name servers, headers and errors of libraries say is in it.
fn write_in_one_line(writer: &mut impl fmt::Write, text: &str) -> fmt::Result {
    let shown = &text[..text.floor_char_boundary(MAX_SHOWN)];
    for character in shown.chars() {
        match character {
            _ if character.is_control() => write!(writer, "{}", character.escape_default())?,
            // Line and paragraph separators, and characters that change the direction of text
            // or have no width.
            '\u{2028}'
            | '\u{2029}'
            | '\u{061c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}' => {
                write!(writer, "{}", character.escape_unicode())?;
            }
            _ => writer.write_char(character)?,
        }
    }
    match text.len() - shown.len() {
        0 => Ok(()),
        left_out => write!(writer, "… ({left_out} more bytes)"),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::Level;

    use super::*;

    #[track_caller]
    fn check(text: &str, target: &str, level: Level, is_shown: bool) {
        assert_eq!(
            LogFilter::parse(text).unwrap().0.would_enable(target, &level),
            is_shown,
            "{text} {target} {level}"
        );
    }

    #[test]
    fn an_authors_lines_are_shown_at_the_chosen_level() {
        check("info", "hello", Level::INFO, true);
        check("info", "hello", Level::DEBUG, false);
        check("debug", "hello::deep", Level::DEBUG, true);
        check("info,hello=debug", "hello", Level::DEBUG, true);
        check("info,hello=debug", "apisix_plugin_runner::dispatcher", Level::DEBUG, false);
        check("hello=debug", "other", Level::INFO, true);
        check("error", "hello", Level::WARN, false);
    }

    #[test]
    fn chatty_libraries_are_shown_when_they_are_named_or_everything_is() {
        check("debug", "hyper::proto", Level::DEBUG, false);
        check("debug", "hyper::proto", Level::WARN, true);
        check("error", "hyper", Level::WARN, false);
        check("info,hyper=debug", "hyper::proto", Level::DEBUG, true);
        check("trace", "hyper", Level::TRACE, true);
    }

    /// The line that this writes, without a terminal.
    fn line(write: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Written(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Written {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = Written::default();
        let writer = written.clone();
        let lines = layer()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .fmt_fields(QuotedFields)
            .event_format(Line);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), write);
        let bytes = std::mem::take(&mut *written.0.lock().unwrap());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_from_outside_stays_in_its_line() {
        let forged = "no TLS: \"a\n2026-01-01T00:00:00Z  WARN x: forged\r\u{85}\u{2028}\u{202e}\x1b[31m\0\"";
        for line in [
            line(|| tracing::warn!(reason = %forged, "request refused")),
            line(|| tracing::warn!(reason = ?forged, "request refused")),
            line(|| tracing::warn!(reason = forged, "request refused")),
            line(|| tracing::warn!("{forged}")),
        ] {
            let (content, end) = line.split_at(line.len() - 1);
            assert_eq!(end, "\n");
            let is_harmful = |c: char| c.is_control() || ['\u{2028}', '\u{202e}'].contains(&c);
            assert!(!content.contains(is_harmful), "{content:?}");
        }
        let plain = line(|| tracing::warn!(reason = %"앨리스: a b", n = 1, "request refused"));
        assert!(plain.ends_with("request refused reason=\"앨리스: a b\" n=1\n"), "{plain}");
    }

    #[test]
    fn a_value_ends_where_its_quotes_say() {
        for (line, expected) in [
            (
                line(|| tracing::info!(code = "a-b", n = 1.5, yes = true, "m")),
                r#"m code="a-b" n=1.5 yes=true"#,
            ),
            (line(|| tracing::info!(reason = "word", host = %"word", "m")), r#"m reason="word" host=word"#),
            (line(|| tracing::info!(a = "b c", d = "e=f", g = "", "m")), r#"m a="b c" d="e=f" g="""#),
            (line(|| tracing::info!(reason = %"a \" b=c", "m")), r#"m reason="a \" b=c""#),
            (line(|| tracing::info!(a = ?"b", c = ?["d", "e"], "m")), r#"m a="b" c="[\"d\", \"e\"]""#),
            (line(|| tracing::info!(a = "\"b\"", c = %"d\\", "m")), r#"m a="\"b\"" c=d\"#),
        ] {
            let (_, fields) = line.split_once("tests: ").unwrap();
            assert_eq!(fields.trim_end(), expected);
        }
    }

    #[test]
    fn a_long_text_is_cut() {
        let long = "é".repeat(MAX_SHOWN);
        let line = line(|| tracing::warn!(reason = %long, "refused"));
        assert!(line.len() < MAX_SHOWN + 200, "{}", line.len());
        assert!(line.ends_with(" more bytes)\n"));
    }

    #[test]
    fn an_unknown_level_is_rejected() {
        for text in ["", "loud", "hello=loud", "=debug", "info,", "hello=debug=info"] {
            let error = LogFilter::parse(text).map(|_| ()).unwrap_err();
            assert!(error.starts_with("not a level (error, warn, info, debug, trace)"), "{text}: {error}");
        }
    }
}
