//! Which call a line of the log belongs to.
//!
//! A `tracing` span for each call would cost a tenth of the call, so the log writer of
//! this crate reads a thread-local value instead. A program with a subscriber of its own
//! gets a real span when it enables `debug` for the target
//! `apisix_plugin_runner::call`.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tracing::Instrument as _;

thread_local! {
    static CURRENT: RefCell<Option<CurrentCall>> = const { RefCell::new(None) };
}

/// Whether a log writer reads contexts, so that they have to be made.
static IS_READ: AtomicBool = AtomicBool::new(false);

/// The number of the next call.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// One call of the gateway's.
#[derive(Debug)]
pub(crate) struct CallContext {
    /// Our own number, unique in this process.
    call: u64,
    route: Option<Arc<str>>,
    /// The gateway's id of the request, once something has asked for it.
    request_id: OnceLock<Box<str>>,
}

#[derive(Clone)]
struct CurrentCall {
    context: Arc<CallContext>,
    plugin: &'static str,
}

impl CallContext {
    /// The context of the next call; `None` if nothing would show it.
    pub(crate) fn next(route: Option<&Arc<str>>) -> Option<Arc<Self>> {
        let has_span = tracing::enabled!(target: "apisix_plugin_runner::call", tracing::Level::DEBUG);
        if !IS_READ.load(Ordering::Relaxed) && !has_span {
            return None;
        }
        let call = NEXT.fetch_add(1, Ordering::Relaxed);
        Some(Arc::new(Self { call, route: route.cloned(), request_id: OnceLock::new() }))
    }

    /// Notes the gateway's id of the request.
    pub(crate) fn set_request_id(&self, id: &[u8]) {
        let shown = crate::request_id::shown_request_id(Some(id));
        let _ = self.request_id.set(shown.into());
    }
}

/// Runs a plugin's future in the context of its call.
pub(crate) async fn within<T>(
    context: Option<&Arc<CallContext>>,
    plugin: &'static str,
    future: impl Future<Output = T>,
) -> T {
    let Some(context) = context else { return future.await };
    let span = tracing::debug_span!(
        target: "apisix_plugin_runner::call", "call", call = context.call, plugin, route = context.route.as_deref(),
    );
    let mut future = pin!(future.instrument(span));
    std::future::poll_fn(|task| {
        let here = CurrentCall { context: Arc::clone(context), plugin };
        let _restored = RestoredCall(CURRENT.replace(Some(here)));
        future.as_mut().poll(task)
    })
    .await
}

/// Puts the context back that was there before, also after a panic.
struct RestoredCall(Option<CurrentCall>);

impl Drop for RestoredCall {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Says that a log writer reads contexts from now on.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) fn read_from_now_on() {
    IS_READ.store(true, Ordering::Relaxed);
}

/// Writes the current call as `call{…}: `, or nothing outside a call.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) fn write_current(to: &mut impl fmt::Write) -> fmt::Result {
    let current = CURRENT.with_borrow(Clone::clone);
    let Some(CurrentCall { context, plugin }) = current else { return Ok(()) };
    write!(to, "call{{plugin={plugin} call={}", context.call)?;
    if let Some(route) = &context.route {
        write!(to, " route={route:?}")?;
    }
    if let Some(id) = context.request_id.get() {
        write!(to, " request_id={id:?}")?;
    }
    to.write_str("}: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_line_names_its_call_route_and_request() {
        read_from_now_on();
        let context = CallContext::next(Some(&Arc::from("r\n1"))).unwrap();
        let shown = || {
            let mut text = String::new();
            write_current(&mut text).unwrap();
            text
        };
        let call = context.call;
        within(Some(&context), "hello", async {
            assert_eq!(shown(), format!("call{{plugin=hello call={call} route=\"r\\n1\"}}: "));
            context.set_request_id(b"abc");
            tokio::task::yield_now().await;
            assert_eq!(
                shown(),
                format!("call{{plugin=hello call={call} route=\"r\\n1\" request_id=\"abc\"}}: ")
            );
        })
        .await;
        assert_eq!(shown(), "");
    }
}
