//! Who a user is and what their workspace is called: from the headers of a request and
//! the conf of `user-upstream` to claims that are believed, a verdict of the policy, and
//! a host name.
//!
//! # Invariants
//!
//! - Nothing here knows a gateway, a plugin, a resolver of ours or Kubernetes. Of the
//!   rest of the program it uses [`HeaderName`](http::HeaderName) and the types
//!   of an upstream.
//! - A claim of a token is believed only after its signature was checked.
//! - The only connections are those to an issuer, for its keys (`keys`), with names that
//!   the caller's resolver looks up.
//! - No error repeats a claim, a token or a value of a conf.

pub mod claims;
pub mod userinfo;
pub mod token;
pub mod keys;
pub mod identity_headers;
pub mod identity_error;
pub mod policy;
pub mod label;
pub mod template;
pub mod login_link;
pub mod config;
mod digits;
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
