//! What the plugin makes of its conf before the first request.

use std::sync::Arc;

use thiserror::Error;

use super::memory::{ConfNumber, Memory};
use super::request_headers::cache_key;
use crate::route::mode::{Unchecked, Ways};
use apisix_plugin_runner::{CacheKey, UpstreamMode};
use kube_coders_identity::config::{IdentityConfig, UserUpstreamConfig};
use kube_coders_identity::keys::{CaFileError, Issuer};

/// A conf that requests can be decided by.
pub(crate) struct PreparedUserUpstream {
    pub(super) config: UserUpstreamConfig,
    /// The issuer of the tokens, if the conf believes tokens.
    pub(super) issuer: Option<Arc<Issuer>>,
    /// The parts of a request that every decision under this conf depends on. In forward
    /// mode no gateway caches a decision.
    pub(super) cache_key: Option<CacheKey>,
    /// Tells the memory of this conf from that of all others.
    pub(super) number: ConfNumber,
}

/// Why no request can be decided by a conf.
#[derive(Debug, Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    #[error("upstream: {0}")]
    Unchecked(#[from] Unchecked),
}

/// Checks what a conf says about files and the way to workspaces.
///
/// # Errors
///
/// A file can't be used, or nothing would check the workspaces' certificates.
pub(crate) fn check(config: &UserUpstreamConfig, ways: Ways) -> Result<UpstreamMode, PrepareError> {
    config.check_files()?;
    Ok(ways.way(config.upstream.scheme(), config.upstream_mode)?)
}

impl PreparedUserUpstream {
    /// Prepares a conf. `issuer_of` gives the issuer of a conf that believes tokens.
    ///
    /// # Errors
    ///
    /// As [`check`].
    pub(super) fn new(
        config: UserUpstreamConfig,
        ways: Ways,
        memory: &Memory,
        issuer_of: impl FnOnce(&kube_coders_identity::Verified) -> Arc<Issuer>,
    ) -> Result<Self, PrepareError> {
        let mode = check(&config, ways)?;
        let issuer = match &config.identity {
            IdentityConfig::Verified(verified) => Some(issuer_of(verified)),
            IdentityConfig::Gateway => None,
        };
        let cache_key = (mode == UpstreamMode::Direct).then(|| cache_key(&config));
        Ok(Self { config, issuer, cache_key, number: memory.next_conf() })
    }
}
