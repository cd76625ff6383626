//! Identifies a user, and computes the name of the user's workspace.
//!
//! This crate is for programs that must name a workspace as kube-coders does: the shipped
//! plugin, its `explain` command, and tools that create workspaces.
//!
//! ```
//! use apisix_plugin_runner::config::parse_conf;
//! use kube_coders_identity::{UserUpstreamConfig, claims};
//!
//! let config: UserUpstreamConfig = parse_conf(br#"{
//!     "identity": {"trust": "gateway"},
//!     "upstream": "http://code-{sub}.workspaces:8443",
//!     "deny": {"subjects": ["mallory"]}
//! }"#)?;
//! let claims = claims::decode(br#"{"sub": "alice"}"#, &config.wanted)?.with_subject()?;
//! config.policy.decide(&claims)?;
//! assert_eq!(config.upstream.render(&claims)?.to_string(), "http://code-alice.workspaces:8443");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to look
//!
//! | I want to | use |
//! |---|---|
//! | read the conf of the plugin `user-upstream` | [`UserUpstreamConfig`] |
//! | find the headers that identify a user | [`identity_headers::find`] |
//! | read claims from `X-Userinfo` | [`userinfo::decode`] |
//! | read claims from a token, and check it | [`token::Token`], [`keys::Issuer`], [`KeySet`] |
//! | decide whether a user may use a workspace | [`policy::Policy`] |
//! | compute a workspace's host name or upstream | [`HostTemplate`], [`Template`] |
//! | compute one label of a name | [`label::push_label`] |
//! | explain why a user is not identified | [`identity_error::IdentityError`] |
//!
//! A claim of a token counts only after the token's signature has been checked. The crate
//! connects only to an issuer, for its keys, and looks up names with the caller's resolver.
//! No error repeats a claim, a token or a value of a conf.

pub mod claims;
pub mod userinfo;
pub mod token;
pub mod keys;
pub mod identity_headers;
pub mod identity_error;
pub mod policy;
pub mod label;
pub mod template;
pub mod template_risk;
pub mod login_link;
pub mod config;
mod digits;
mod json_object;
mod locks;
pub mod pem_file;
#[cfg(fuzzing)]
pub mod fuzzing;

pub use config::{IdentityConfig, UserUpstreamConfig, Verified};
pub use digits::{is_digits, parse_digits};
pub use keys::KeySet;
pub use login_link::LoginLink;
pub use pem_file::read_pem_file;
pub use reqwest::Url;
pub use template::{HostTemplate, Template, TemplateError};

/// Compiles the README's example as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
