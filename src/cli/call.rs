//! `kube-coders call`: one request to a running runner, and its decision in words.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use apisix_plugin_runner::command::{CallCommandError, Note, ask, client_request, decision_note, flag_text};
use apisix_plugin_runner::gateway::ForwardedRequest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::cli::arguments::CallCommandArgs;
use crate::route::gateway;
use crate::route::stamp::STAMP_HEADER;
use crate::user_upstream::UserUpstream;
use apisix_plugin_runner::PreparedPlugin;
use apisix_plugin_runner::config::parse_conf;
use kube_coders_identity::UserUpstreamConfig;

/// Calls the runner once and prints its decision.
pub(crate) async fn call(
    path: &Path,
    args: &CallCommandArgs,
    output: &mut impl Write,
) -> Result<ExitCode, CallCommandError> {
    let mut request = client_request(&args.request)?;
    if let Some(claims) = &args.userinfo {
        let claims = flag_text("--userinfo", claims)?;
        request = request.added_header("x-userinfo", STANDARD.encode(claims));
    }
    let asked = (&*args.plugin, &*args.request.conf);
    let called = ask(&gateway(path), path, asked, &request, output, |forwarded| Some(note(forwarded))).await;
    called.map_err(|error| error.with_reason(asked, conf_error))
}

/// Why a runner refuses a conf of `user-upstream`. What depends on the runner's settings and
/// files is in its log alone.
fn conf_error(plugin: &str, conf: &str) -> Option<String> {
    let is_ours = plugin == <UserUpstream as PreparedPlugin>::NAME;
    is_ours
        .then(|| parse_conf::<UserUpstreamConfig>(conf.as_bytes()).err())
        .flatten()
        .map(|error| error.to_string())
}

/// What a choice contains in addition to the upstream; the stamp itself is not shown.
fn note(forwarded: &ForwardedRequest) -> Note {
    let mut note = decision_note(forwarded);
    note.hidden.push(STAMP_HEADER);
    note
}
