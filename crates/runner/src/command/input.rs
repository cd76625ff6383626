//! Texts that commands take: as they are typed, from a file, or from standard input.

use std::fs::File;
use std::io::{self, Read};

use crate::bounded_file::read_bounded;

/// How much is read of a file or of standard input, in bytes: more than a gateway's
/// configuration has, or the headers that it accepts.
const MAX_INPUT: u64 = 16 * 1024 * 1024;

/// Reads a file, or standard input if the name is `-`, up to 16 MiB.
///
/// ```
/// use apisix_plugin_runner::command::read_input;
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("conf.json");
/// std::fs::write(&file, "{}")?;
/// assert_eq!(read_input(&file.to_string_lossy())?, b"{}");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// A file that can't be read or is longer.
pub fn read_input(file: &str) -> io::Result<Vec<u8>> {
    let source: Box<dyn Read> = match file {
        "-" => Box::new(io::stdin()),
        _ => Box::new(File::open(file)?),
    };
    read_bounded(source, MAX_INPUT)
}

/// The text of an argument that is a text, or `@` and a file's name.
///
/// ```
/// use apisix_plugin_runner::command::text_or_file;
///
/// assert_eq!(text_or_file("{}").as_deref(), Ok("{}"));
/// assert!(text_or_file("@/nonexistent").is_err());
/// ```
///
/// # Errors
///
/// What is wrong with the file, with its name.
pub fn text_or_file(argument: &str) -> Result<String, String> {
    let Some(file) = argument.strip_prefix('@') else { return Ok(argument.to_owned()) };
    let bytes = read_input(file).map_err(|error| format!("{file:?}: {error}"))?;
    String::from_utf8(bytes).map_err(|_| format!("{file:?} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        file.as_file().set_len(MAX_INPUT).unwrap();
        assert_eq!(read_input(path).unwrap().len() as u64, MAX_INPUT);
        file.as_file().set_len(MAX_INPUT + 1).unwrap();
        assert_eq!(read_input(path).unwrap_err().to_string(), "longer than 16777216 bytes");
    }

    #[test]
    fn an_argument_is_a_text_or_names_a_file() {
        assert_eq!(text_or_file("{}").unwrap(), "{}");
        assert!(text_or_file("@/nonexistent").unwrap_err().starts_with("\"/nonexistent\": "));
    }
}
