//! The users that can be picked, and what the gateway says about them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A user, who counts as signed in at this gateway once picked.
#[derive(Debug)]
pub(crate) struct User {
    /// The `sub` claim. Each is a plain DNS label, so the workspace's name contains it
    /// unchanged.
    pub(crate) subject: &'static str,
    /// The user's name.
    pub(crate) name: &'static str,
    /// The language that the name is in.
    pub(crate) language: &'static str,
    /// What the picker says about the user.
    pub(crate) about: &'static str,
    /// The userinfo, as an identity provider would send it.
    pub(crate) claims: &'static str,
    pub(crate) workspace: Place,
}

/// Where a user's requests lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A workspace that runs from the beginning.
    Running,
    /// A workspace that starts when it is asked for.
    Late,
    /// There is none.
    Nowhere,
    /// A rule of the route refuses the user.
    Denied,
}

pub(crate) const USERS: [User; 6] = [
    User {
        subject: "alice",
        name: "alice",
        language: "en",
        about: "has a workspace",
        claims: r#"{"sub":"alice","preferred_username":"alice","name":"Alice"}"#,
        workspace: Place::Running,
    },
    User {
        subject: "bob",
        name: "bob",
        language: "en",
        about: "has another one",
        claims: r#"{"sub":"bob","preferred_username":"bob","name":"Bob"}"#,
        workspace: Place::Running,
    },
    // The team is there for its bytes: with it, the base64 contains both characters that
    // the URL-safe alphabet lacks.
    User {
        subject: "jaehun",
        name: "김재훈",
        language: "ko",
        about: "has a name of many bytes, and + and / in its base64",
        claims: r#"{"sub":"jaehun","preferred_username":"김재훈","name":"김재훈","team":"쿠버네티스플랫폼팀"}"#,
        workspace: Place::Running,
    },
    User {
        subject: "zoe",
        name: "zoe",
        language: "en",
        about: "has no workspace, and gets a page that says so",
        claims: r#"{"sub":"zoe","preferred_username":"zoe","name":"Zoe"}"#,
        workspace: Place::Nowhere,
    },
    User {
        subject: "nina",
        name: "nina",
        language: "en",
        about: "has a workspace that is not started, and sees a page until it is",
        claims: r#"{"sub":"nina","preferred_username":"nina","name":"Nina"}"#,
        workspace: Place::Late,
    },
    User {
        subject: "eve",
        name: "eve",
        language: "en",
        about: "may not enter: a rule of the route denies her",
        claims: r#"{"sub":"eve","preferred_username":"eve","name":"Eve"}"#,
        workspace: Place::Denied,
    },
];

/// The template of the route's upstream, without its port.
pub(crate) const UPSTREAM_HOST: &str = "code-{sub}";

impl User {
    pub(crate) fn find(subject: &str) -> Option<&'static Self> {
        USERS.iter().find(|user| user.subject == subject)
    }

    /// The value of `X-Userinfo`: standard base64 with padding, as
    /// openid-connect writes it.
    pub(crate) fn userinfo(&self) -> String {
        STANDARD.encode(self.claims)
    }

    /// The name that the runner looks up for this user's workspace.
    pub(crate) fn host(&self) -> String {
        UPSTREAM_HOST.replace("{sub}", self.subject)
    }
}

/// The users whose workspaces run from the beginning.
pub(crate) fn owners() -> impl Iterator<Item = &'static User> {
    USERS.iter().filter(|user| user.workspace == Place::Running)
}

/// The user whose workspace starts late.
pub(crate) fn late() -> &'static User {
    USERS.iter().find(|user| user.workspace == Place::Late).expect("the list has one")
}

/// The subjects that the route's rule denies.
pub(crate) fn denied() -> impl Iterator<Item = &'static str> {
    USERS.iter().filter(|user| user.workspace == Place::Denied).map(|user| user.subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_many_bytes_brings_both_special_characters_of_base64() {
        let userinfo = User::find("jaehun").unwrap().userinfo();
        assert!(userinfo.contains('+') && userinfo.contains('/'), "{userinfo}");
    }

    #[test]
    fn the_claims_say_the_subject_and_the_name() {
        for user in &USERS {
            let claims: serde_json::Value = serde_json::from_str(user.claims).unwrap();
            assert_eq!(claims["sub"], user.subject);
            assert_eq!(claims["preferred_username"], user.name);
        }
    }
}
