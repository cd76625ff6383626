//! A plugin's code may panic, also in destructors. That ends nothing but the call, the hook
//! or the value.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tracing::error;

/// A value of a plugin's that may be dropped anywhere, such as under a lock.
pub(crate) struct ContainedDrop<T>(Option<T>);

impl<T> ContainedDrop<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub(crate) fn get(&self) -> &T {
        self.0.as_ref().expect("only drop takes it")
    }
}

impl<T> Drop for ContainedDrop<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        contain_drop("a plugin's prepared value", || drop(value));
    }
}

/// Drops `what`, and logs a panic in its destructor.
pub(crate) fn contain_drop(what: &str, drop: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(drop)) {
        error!(panic = panic_text(&*panic), "{what} panicked while it was dropped");
    }
}

/// Polls a future, and gives a panic of it as an error.
pub(crate) fn poll_caught<F: Future + ?Sized>(
    mut future: Pin<&mut F>,
    task: &mut Context<'_>,
) -> Poll<Result<F::Output, Box<dyn Any + Send>>> {
    match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(task))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::Arc;
    use std::time::Duration;

    use apisix_ext_plugin::frame::FrameKind;
    use apisix_ext_plugin::gateway_side::{RequestAnswer, decode_prepared, decode_request_answer};
    use apisix_ext_plugin::payload::Encoder;
    use tokio::io::{DuplexStream, duplex};
    use tokio::sync::{Notify, oneshot};
    use tokio_util::sync::CancellationToken;

    use crate::connection::{Connection, Frame, ReadError};
    use crate::gateway::{CallError, ClientRequest, Gateway, Route};
    use crate::listener::server::serve_calls;
    use crate::listener::takeover::Succession;
    use crate::plugin::{Action, PluginError, PreparedPlugin};
    use crate::request::Request;
    use crate::response::Response;
    use crate::runner::Runner;
    use crate::settings::Settings;

    /// A value whose destructor panics.
    #[derive(Debug, Default)]
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            // A second panic during the first one would abort the tests.
            assert!(std::thread::panicking(), "a bomb went off");
        }
    }

    impl fmt::Display for Bomb {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a bomb")
        }
    }

    impl std::error::Error for Bomb {}

    /// Does with a bomb what its conf says.
    #[derive(Default)]
    struct Bombs {
        deadline: Option<Duration>,
        is_waiting: Arc<Notify>,
    }

    impl Bombs {
        async fn waits(&self) {
            let _bomb = Bomb;
            self.is_waiting.notify_one();
            std::future::pending::<()>().await;
        }
    }

    impl PreparedPlugin for Bombs {
        const NAME: &'static str = "bombs";
        type Config = String;
        type Prepared = (String, Option<Bomb>);

        async fn prepare(&self, config: String) -> Result<Self::Prepared, PluginError> {
            let bomb = (config == "keeps").then(|| Bomb);
            Ok((config, bomb))
        }

        fn deadline(&self) -> Option<Duration> {
            self.deadline
        }

        async fn on_request(
            &self,
            (what, _): &Self::Prepared,
            _: &mut Request<'_>,
        ) -> Result<Action, PluginError> {
            match what.as_str() {
                "waits" => self.waits().await,
                "fails" => return Err(Bomb.into()),
                _ => {}
            }
            Ok(Action::Continue)
        }

        async fn on_response(&self, _: &Self::Prepared, _: &mut Response<'_>) -> Result<(), PluginError> {
            self.waits().await;
            Ok(())
        }
    }

    /// The gateway's end of one connection, whose runner end tells how many calls it answered.
    struct OneConnection {
        gateway: Connection<DuplexStream>,
        served: tokio::task::JoinHandle<Result<u64, ReadError>>,
    }

    impl OneConnection {
        fn open(plugin: Bombs, settings: &Settings) -> Self {
            let (ours, theirs) = duplex(64 * 1024);
            let dispatcher = Runner::named("test", "0").plugin(plugin).dispatcher(settings).unwrap();
            let served = tokio::spawn(async move {
                let (stop, succession) = (CancellationToken::new(), Succession::new(None));
                let mut connection = Connection::new(theirs);
                serve_calls(&mut connection, &dispatcher, &succession, &stop).await.map(|served| served.calls)
            });
            Self { gateway: Connection::new(ours), served }
        }

        async fn call(&mut self, kind: FrameKind, encoder: &Encoder) -> Frame {
            self.gateway.write_frame(kind, encoder.payload()).await.unwrap();
            loop {
                let frame = self.gateway.read_frame().await.unwrap().expect("the connection is alive");
                if frame.kind == kind {
                    return frame;
                }
                // The runner asks for the request's id to name a call that failed.
                assert_eq!(frame.kind, FrameKind::ExtraInfo);
                let mut encoder = Encoder::new();
                encoder.extra_info(None);
                self.gateway.write_frame(FrameKind::ExtraInfo, encoder.payload()).await.unwrap();
            }
        }

        async fn prepare(&mut self, conf: &str) -> u32 {
            let mut encoder = Encoder::new();
            let conf = format!("{conf:?}");
            encoder.prepare_conf_call("route#1", &[(b"bombs", conf.as_bytes())]);
            decode_prepared(&self.call(FrameKind::PrepareConf, &encoder).await.payload).unwrap()
        }

        async fn request(&mut self, token: u32) -> RequestAnswer {
            let encoder = request_call(token);
            decode_request_answer(&self.call(FrameKind::RequestCall, &encoder).await.payload).unwrap().1
        }

        async fn response(&mut self, token: u32) {
            let mut encoder = Encoder::new();
            encoder.response_call(1, token, 200, &[]);
            self.call(FrameKind::ResponseCall, &encoder).await;
        }

        /// Closes the connection, and says how many calls were answered on it.
        async fn close(self) -> u64 {
            drop(self.gateway);
            self.served.await.unwrap().unwrap()
        }
    }

    fn request_call(token: u32) -> Encoder {
        let mut encoder = Encoder::new();
        let mut parts = ClientRequest::get("/").to_parts(1);
        parts.conf_token = token;
        encoder.request_call(&parts);
        encoder
    }

    #[track_caller]
    fn assert_failed(answer: &RequestAnswer) {
        let RequestAnswer::Stop { status: 503, body, .. } = answer else { panic!("{answer:?}") };
        assert!(String::from_utf8_lossy(body).contains("runner-failed"), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_panics_when_it_is_dropped_fails_its_call_alone() {
        let second = Duration::from_secs(1);
        for deadline in [None, Some(second)] {
            let plugin = Bombs { deadline, ..Bombs::default() };
            let mut runner = OneConnection::open(plugin, &Settings::new("/nonexistent"));
            let (waits, passes) = (runner.prepare("waits").await, runner.prepare("passes").await);
            let since = tokio::time::Instant::now();
            assert_failed(&runner.request(waits).await);
            assert_eq!(since.elapsed(), deadline.unwrap_or(5 * second));
            runner.response(waits).await;
            assert_eq!(runner.request(passes).await, RequestAnswer::Unchanged);
            assert_eq!(runner.close().await, 5);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closes_during_such_a_call_ends_without_a_panic() {
        let plugin = Bombs::default();
        let is_waiting = Arc::clone(&plugin.is_waiting);
        let mut runner = OneConnection::open(plugin, &Settings::new("/nonexistent"));
        let waits = runner.prepare("waits").await;
        runner.gateway.write_frame(FrameKind::RequestCall, request_call(waits).payload()).await.unwrap();
        is_waiting.notified().await;
        drop(runner.gateway);
        let ended = runner.served.await.expect("no panic");
        assert!(matches!(ended, Err(ReadError::Io(_))), "the answer can't be written: {ended:?}");
    }

    #[tokio::test]
    async fn an_error_that_panics_when_it_is_dropped_fails_its_call_alone() {
        let mut runner = OneConnection::open(Bombs::default(), &Settings::new("/nonexistent"));
        let (fails, passes) = (runner.prepare("fails").await, runner.prepare("passes").await);
        assert_failed(&runner.request(fails).await);
        assert_eq!(runner.request(passes).await, RequestAnswer::Unchanged);
        assert_eq!(runner.close().await, 4);
    }

    #[tokio::test]
    async fn a_prepared_value_that_panics_when_it_is_evicted_costs_no_conf() {
        let mut runner = OneConnection::open(Bombs::default(), &Settings::new("/nonexistent").max_confs(1));
        let keeps = runner.prepare("keeps").await;
        assert_eq!(runner.request(keeps).await, RequestAnswer::Unchanged);
        let passes = runner.prepare("passes").await;
        assert_eq!(runner.request(passes).await, RequestAnswer::Unchanged);
        assert_eq!(runner.close().await, 4);
    }

    #[tokio::test]
    async fn a_call_that_panics_when_the_drain_cuts_it_lets_the_runner_end() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("runner.sock");
        let plugin = Bombs::default();
        let is_waiting = Arc::clone(&plugin.is_waiting);
        let (stop, stopped) = oneshot::channel::<()>();
        let settings = Settings::new(&socket).drain_deadline(Duration::ZERO);
        let running = Runner::named("test", "0").plugin(plugin).run(settings, async { drop(stopped.await) });
        let calling = async {
            // The socket's file has no event of its own in this process.
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
            let (gateway, route) = (Gateway::connect(&socket), Route::new("1").plugin("bombs", "\"waits\""));
            let request = ClientRequest::get("/");
            let stopping = async {
                is_waiting.notified().await;
                drop(stop);
            };
            tokio::join!(gateway.try_call(&route, &request), stopping).0
        };
        let (ended, called) = tokio::join!(running, calling);
        ended.unwrap();
        assert!(matches!(called, Err(CallError::Closed)), "{called:?}");
    }
}
