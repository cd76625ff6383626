//! The plugin that is shipped: who asks, and so which workspace the request
//! goes to.
//!
//! Identity, template, name, upstream, in this order. What fails on the way is
//! an answer of ours, so that it holds whatever the route says of failures.

mod config;
pub(crate) mod identity;
mod label;
mod origin;
mod remembered;
mod template;

use std::sync::Arc;

use tokio::time::timeout;
use tracing::{debug, info};

use crate::headers::HeaderName;
use crate::plugin::{Action, Plugin, PluginError, Stop};
use crate::refusal::{Reader, Refusal};
use crate::request::Request;
use crate::request_id::{REQUEST_ID_WAIT, shown_request_id};
use crate::resolver::{ResolveError, Resolver};
use crate::upstream::Upstream;
use config::{Trust, UserUpstreamConfig};
use identity::{IdentityError, Malformed};
pub(crate) use template::{HostTemplate, TemplateError};

/// What says who somebody is, or lets act as them, and is nothing for a
/// workspace's eyes.
static IDENTITY_HEADERS: [HeaderName; 5] = [
    HeaderName::from_static("x-access-token"),
    HeaderName::from_static("x-id-token"),
    HeaderName::from_static("x-raw-id-token"),
    HeaderName::from_static("x-refresh-token"),
    HeaderName::from_static("x-userinfo"),
];

static FORWARDED_USER: HeaderName = HeaderName::from_static("x-forwarded-user");
static FORWARDED_USERNAME: HeaderName = HeaderName::from_static("x-forwarded-preferred-username");

/// How many headers the gateway shows at most (GATEWAY.md, HTTPReqCall); a
/// request that shows as many may have more.
const MAX_FRAME_HEADERS: usize = 100;

/// Sends each user's requests to their own workspace.
pub(crate) struct UserUpstream {
    resolver: Arc<Resolver>,
}

impl UserUpstream {
    pub(crate) fn new(resolver: Arc<Resolver>) -> Self {
        Self { resolver }
    }

    async fn decide(
        &self,
        config: &UserUpstreamConfig,
        request: &Request<'_>,
    ) -> Result<Arc<Decision>, Refusal> {
        let Trust::Gateway = config.identity.trust;
        let userinfo = identity::find(request.headers()).map_err(|error| match error {
            IdentityError::Missing => Refusal::IdentityMissing,
            IdentityError::Malformed(malformed) => malformed_identity(malformed),
        })?;
        if request.header("upgrade").is_some() && origin::is_foreign(request.headers()) {
            return Err(Refusal::ForeignOrigin);
        }
        let decision = config.remembered.get_or_read(userinfo, || decide_anew(config, userinfo))?;
        let resolved = self.resolver.resolve(decision.upstream.host()).await;
        // The name has the subject in it, so it is told only to who asks for more.
        resolved.map_err(|reason| {
            debug!(upstream = %decision.upstream, %reason, "workspace has no address");
            match reason {
                ResolveError::NotFound => Refusal::WorkspaceNotFound,
                ResolveError::Unavailable => Refusal::ResolverUnavailable,
            }
        })?;
        Ok(decision)
    }
}

/// The log says what is wrong with the header, which the client is not told.
fn malformed_identity(reason: Malformed) -> Refusal {
    info!(%reason, "identity refused");
    Refusal::IdentityMalformed
}

/// Who an identity header says is asking, and where they go: nothing but the
/// header and the conf decides it.
pub(crate) struct Decision {
    /// With the subject, which a header can hold.
    upstream: Upstream,
    /// The user name, if there is one that a header can hold.
    username: Option<Box<str>>,
}

fn decide_anew(config: &UserUpstreamConfig, userinfo: &[u8]) -> Result<Decision, Refusal> {
    let claims = identity::decode(userinfo, &config.wanted).map_err(|malformed| match malformed {
        Malformed::Subject => Refusal::NoWorkspaceName,
        malformed => malformed_identity(malformed),
    })?;
    if !is_header_text(claims.subject()) {
        return Err(Refusal::IdentityMalformed);
    }
    let upstream = config.upstream.render(&claims).map_err(|_| Refusal::NoWorkspaceName)?;
    Ok(Decision {
        upstream: upstream.for_subject(claims.subject()).map_err(|_| Refusal::NoWorkspaceName)?,
        username: claims.username().filter(|name| is_header_text(name)).map(Box::from),
    })
}

impl Plugin for UserUpstream {
    const NAME: &'static str = "user-upstream";
    type Config = UserUpstreamConfig;

    async fn on_request(
        &self,
        config: &UserUpstreamConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let decision = match self.decide(config, request).await {
            Ok(decided) => decided,
            Err(refusal) => return refuse(refusal, request).await,
        };
        for name in &IDENTITY_HEADERS {
            remove(name, request)?;
        }
        request.set_header(&FORWARDED_USER, decision.upstream.subject().unwrap_or_default())?;
        match &decision.username {
            Some(name) => request.set_header(&FORWARDED_USERNAME, name.as_bytes())?,
            None => remove(&FORWARDED_USERNAME, request)?,
        }
        request.upstream(decision.upstream.clone());
        Ok(Action::Continue)
    }
}

/// Removes a header that is there, or may be there out of sight. Each change
/// costs the gateway time, and most requests have none of these headers.
fn remove(name: &HeaderName, request: &mut Request<'_>) -> Result<(), PluginError> {
    if request.header(name).is_some() || request.headers().len() >= MAX_FRAME_HEADERS {
        request.remove_header(name)?;
    }
    Ok(())
}

/// Whether a text can stand in a header as it is. A user name is its owner's to
/// choose, and no reason to turn them away.
fn is_header_text(text: &str) -> bool {
    // Spaces around it are not the value's (RFC 9110, section 5.5), so " a" would arrive as "a".
    !text.is_empty() && text.trim() == text && !text.chars().any(char::is_control)
}

async fn refuse(refusal: Refusal, request: &mut Request<'_>) -> Result<Action, PluginError> {
    let known = timeout(REQUEST_ID_WAIT, request.var("request_id")).await;
    let request_id = shown_request_id(known.ok().and_then(Result::ok).flatten().as_deref());
    info!(code = refusal.code(), request_id, "request refused");
    let reader = Reader::new(request.method().as_str(), |name| request.header(name));
    let rendered = refusal.render(&reader, &request_id, None);
    let mut stop = Stop::new(rendered.status)?.body(rendered.body);
    for (name, value) in rendered.headers {
        stop = stop.header(name, value)?;
    }
    Ok(stop.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::plugin::Registry;
    use crate::resolver::NameServers;
    use crate::runner::CallLimits;
    use crate::testing::{ClientRequest, ForwardedRequest, Gateway, Outcome, Route};

    async fn forwarded(claims: &str, request: ClientRequest) -> ForwardedRequest {
        match outcome(claims, request).await {
            Outcome::Forward(forwarded) => forwarded,
            Outcome::Answer(answer) => panic!("{answer:?}"),
        }
    }

    async fn outcome(claims: &str, request: ClientRequest) -> Outcome {
        let servers = NameServers::Listed(vec!["127.0.0.1:1".parse().unwrap()]);
        let mut registry = Registry::default();
        assert!(registry.add(UserUpstream::new(Arc::new(Resolver::new(&servers).unwrap()))));
        let limits = CallLimits { deadline: Duration::from_secs(5), questions: 10, bytes: 10_000 };
        let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443"}"#;
        let request = match request.header_value("x-userinfo") {
            Some(_) => request,
            None => request.added_header("x-userinfo", STANDARD.encode(claims)),
        };
        let gateway = Gateway::with_registry(registry, limits);
        gateway.call(&Route::new("r").plugin("user-upstream", conf), &request).await
    }

    #[tokio::test]
    async fn a_subject_that_no_header_can_have_is_refused() {
        for claims in [
            r#"{"sub": "a\r\nx: y"}"#,
            r#"{"sub": "a\u0000"}"#,
            r#"{"sub": "a\u007f"}"#,
            r#"{"sub": " a"}"#,
            r#"{"sub": "a "}"#,
        ] {
            assert_eq!(outcome(claims, ClientRequest::get("/")).await.status(), Some(400), "{claims}");
        }
    }

    #[tokio::test]
    async fn a_workspace_sees_who_asks_and_nothing_to_act_as_them() {
        let mut request = ClientRequest::get("/")
            .header("x-forwarded-user", "mallory")
            .header("x-forwarded-preferred-username", "mallory")
            .header("x-refresh-token", "secret");
        for name in ["x-access-token", "x-id-token", "x-raw-id-token"] {
            request = request.added_header(name, "secret");
        }
        let forwarded = forwarded(r#"{"sub": "alice", "preferred_username": "Alice"}"#, request).await;
        assert_eq!(forwarded.header("x-forwarded-user"), Some(&b"alice"[..]));
        assert_eq!(forwarded.header("x-forwarded-preferred-username"), Some(&b"Alice"[..]));
        for name in &IDENTITY_HEADERS {
            assert_eq!(forwarded.header(name.as_str()), None, "{name}");
        }
        assert_eq!(
            forwarded.upstream,
            Some("http://127.0.0.1:8443".parse::<Upstream>().unwrap().for_subject("alice").unwrap())
        );
    }

    #[tokio::test]
    async fn a_user_name_that_no_header_can_have_is_left_out() {
        for claims in [r#"{"sub": "alice"}"#, r#"{"sub": "alice", "preferred_username": "a\r\nx: y"}"#] {
            let request = ClientRequest::get("/").header("x-forwarded-preferred-username", "mallory");
            assert_eq!(forwarded(claims, request).await.header("x-forwarded-preferred-username"), None);
        }
    }

    #[tokio::test]
    async fn what_may_stand_behind_the_hundredth_header_is_removed_unseen() {
        let mut request = ClientRequest::get("/");
        for n in 0..95 {
            request = request.header(&format!("x-{n}"), "1");
        }
        // With the host, three that the gateway adds, and the identity there are 101,
        // of which a frame holds 100.
        let claims = r#"{"sub": "alice"}"#;
        let request = request.added_header("x-userinfo", STANDARD.encode(claims));
        let request = request.added_header("x-access-token", "secret");
        let forwarded = forwarded(claims, request).await;
        assert_eq!(forwarded.header("x-access-token"), None);
    }
}
