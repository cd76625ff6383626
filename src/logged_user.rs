//! How log lines name users: by a keyed digest, or by subject and workspace if that is wanted.

use crate::subject_digest::SubjectKeys;
use apisix_plugin_runner::Upstream;

/// What log lines say of users.
#[derive(Clone)]
pub(crate) struct LoggedUsers {
    keys: SubjectKeys,
    shows_subjects: bool,
}

/// The fields of one user. What is `None` is left out of the line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LoggedUser<'u> {
    /// The same for the same subject, for as long as the key is the same.
    pub(crate) digest: Option<String>,
    pub(crate) subject: Option<&'u str>,
    /// The host, which may have the subject in it.
    pub(crate) workspace: Option<&'u str>,
}

impl LoggedUsers {
    pub(crate) fn new(keys: SubjectKeys, shows_subjects: bool) -> Self {
        Self { keys, shows_subjects }
    }

    /// The fields of the user who is known by a subject.
    pub(crate) fn by_subject<'u>(&self, subject: &'u str) -> LoggedUser<'u> {
        LoggedUser {
            digest: Some(self.keys.log_digest(subject)),
            subject: self.shows_subjects.then_some(subject),
            workspace: None,
        }
    }

    /// The fields of the user for whom an upstream was chosen.
    pub(crate) fn by_upstream<'u>(&self, upstream: &'u Upstream) -> LoggedUser<'u> {
        LoggedUser {
            workspace: self.shows_subjects.then(|| upstream.host().as_str()),
            ..upstream.subject().map(|subject| self.by_subject(subject)).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::key_file::{KeyBytes, MIN_KEY};

    fn users(key: u8, shows_subjects: bool) -> LoggedUsers {
        LoggedUsers::new(SubjectKeys::new(&KeyBytes::new(&[key; MIN_KEY]).unwrap(), &[]), shows_subjects)
    }

    #[test]
    fn a_subject_and_its_workspace_are_shown_only_if_that_is_wanted() {
        let upstream: Upstream = "http://code-alice:8443".parse().unwrap();
        let upstream = upstream.for_subject("alice").unwrap();
        let hidden = users(1, false).by_upstream(&upstream);
        assert_eq!((hidden.subject, hidden.workspace), (None, None));
        let shown = users(1, true).by_upstream(&upstream);
        assert_eq!((shown.subject, shown.workspace), (Some("alice"), Some("code-alice")));
        assert_eq!(hidden.digest, shown.digest);
        assert_eq!(hidden.digest, users(1, false).by_subject("alice").digest);
    }

    #[test]
    fn a_digest_is_of_its_subject_and_key() {
        let digest = |key, subject| users(key, false).by_subject(subject).digest.unwrap();
        assert_eq!(digest(1, "alice").len(), 16);
        assert_ne!(digest(1, "alice"), digest(1, "bob"));
        assert_ne!(digest(1, "alice"), digest(2, "alice"));
        let nobody: Upstream = "http://code:8443".parse().unwrap();
        assert_eq!(users(1, false).by_upstream(&nobody), LoggedUser::default());
    }
}
