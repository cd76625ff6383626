//! Settings that were typed, turned into values, with all mistakes together.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::upstream::MIN_TIMEOUT;

/// Everything that is wrong with the settings, one mistake a line.
///
/// ```
/// use apisix_plugin_runner::command::Mistakes;
///
/// let mistakes = Mistakes::one("--port 0: not a number from 1 to 65535".to_owned());
/// let mistakes = mistakes.and(Mistakes::one("--host \"\": empty".to_owned()));
/// assert_eq!(mistakes.to_string(), "--port 0: not a number from 1 to 65535\n--host \"\": empty");
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

impl Mistakes {
    /// A single mistake.
    #[must_use]
    pub fn one(mistake: String) -> Self {
        Self(vec![mistake])
    }

    /// Adds the other mistakes after these.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }
}

/// Checks settings one by one and keeps what is wrong.
///
/// ```
/// use std::time::Duration;
///
/// use apisix_plugin_runner::command::Checker;
///
/// let mut checker = Checker::default();
/// let workers = checker.count("--workers", "many", 64);
/// let pause = checker.duration("--pause", "5", Duration::from_secs(60));
/// let mistakes = checker.finish(workers.zip(pause)).unwrap_err().to_string();
/// assert_eq!(mistakes.lines().next(), Some("--workers \"many\": not a number from 1 to 64"));
/// assert_eq!(mistakes.lines().count(), 2);
/// ```
#[derive(Default)]
pub struct Checker(Vec<String>);

impl Checker {
    /// The value, or `None` after noting the mistake.
    pub fn check<T>(&mut self, name: &str, text: &str, checked: Result<T, String>) -> Option<T> {
        checked.map_err(|why| self.0.push(format!("{name} {text:?}: {why}"))).ok()
    }

    /// A number from 1 to `most`.
    pub fn count(&mut self, name: &str, text: &str, most: usize) -> Option<usize> {
        self.check(name, text, number_between(text, 1, most))
    }

    /// A duration with its unit, from 1 ms to `most`.
    pub fn duration(&mut self, name: &str, text: &str, most: Duration) -> Option<Duration> {
        self.check(name, text, duration_up_to(text, most))
    }

    /// A duration with its unit, or `0s`, to `most`.
    pub fn duration_or_zero(&mut self, name: &str, text: &str, most: Duration) -> Option<Duration> {
        self.check(name, text, duration_or_none(text, most))
    }

    /// A list of values, each checked.
    pub fn each<T>(
        &mut self,
        name: &str,
        texts: &[String],
        check: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let checked: Vec<_> = texts.iter().map(|text| self.check(name, text, check(text))).collect();
        checked.into_iter().collect()
    }

    /// A value that may be absent.
    pub fn optional<T>(
        &mut self,
        name: &str,
        text: Option<&str>,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        match text {
            Some(text) => self.check(name, text, check(text)).map(Some),
            None => Some(None),
        }
    }

    /// The settings, if nothing was wrong.
    ///
    /// # Errors
    ///
    /// Everything that was wrong.
    pub fn finish<T>(self, settings: Option<T>) -> Result<T, Mistakes> {
        match settings {
            Some(settings) if self.0.is_empty() => Ok(settings),
            _ => Err(Mistakes(self.0)),
        }
    }
}

/// Reads a number between two bounds.
///
/// ```
/// use apisix_plugin_runner::command::number_between;
///
/// assert_eq!(number_between("8", 1, 64), Ok(8));
/// assert_eq!(number_between("0", 1, 64), Err("not a number from 1 to 64".to_owned()));
/// ```
///
/// # Errors
///
/// Anything other than digits, and a number out of the bounds.
pub fn number_between(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) && !text.starts_with('+') => Ok(number),
        _ => Err(format!("not a number from {least} to {most}")),
    }
}

fn duration_up_to(text: &str, most: Duration) -> Result<Duration, String> {
    match duration_or_none(text, most)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        duration if duration < MIN_TIMEOUT => {
            Err(format!("less than {}", humantime::format_duration(MIN_TIMEOUT)))
        }
        duration => Ok(duration),
    }
}

fn duration_or_none(text: &str, most: Duration) -> Result<Duration, String> {
    let duration = humantime::Duration::from_str(text)
        .map_err(|_| "not a duration with its unit, such as 5s, 800ms or 2m".to_owned())?;
    match *duration {
        duration if duration > most => Err(format!("more than {}", humantime::format_duration(most))),
        duration => Ok(duration),
    }
}
