//! The log on standard error.

use std::fmt;
use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
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
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn an_unknown_level_is_rejected() {
        for text in ["", "loud", "hello=loud", "=debug", "info,", "hello=debug=info"] {
            let error = LogFilter::parse(text).map(|_| ()).unwrap_err();
            assert!(error.starts_with("not a level (error, warn, info, debug, trace)"), "{text}: {error}");
        }
    }
}
