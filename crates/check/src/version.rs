//! Which APISIX runs.

use std::fmt;
use std::str::FromStr;

/// As much of a version as anything depends on.
///
/// ```
/// use kube_coders_check::Version;
///
/// let version: Version = "v3.18.0-debian".parse()?;
/// assert!(version > "3.9".parse()?);
/// assert_eq!(version.to_string(), "3.18");
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 3 in 3.18.0.
    pub major: u32,
    /// 18 in 3.18.0.
    pub minor: u32,
}

impl FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As an image's tag says it: v3.18.0-debian.
        let numbers = text.strip_prefix('v').unwrap_or(text).split('-').next().unwrap_or_default();
        let mut parts = numbers.split('.').map(str::parse);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), None | Some(Ok(_)), None) => Ok(Self { major, minor }),
            _ => Err("not a version, such as 3.18 or 3.18.0"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let version = |text: &str| text.parse::<Version>();
        assert!(version("3.9").unwrap() < version("3.17.0").unwrap());
        for text in ["3.18.2", "v3.18", "3.18.0-debian"] {
            assert_eq!(version("3.18"), version(text), "{text}");
        }
        for text in ["", "3", "3.x", "3.18.0.1", "w3.18", "-3.18"] {
            assert!(version(text).is_err(), "{text}");
        }
    }
}
