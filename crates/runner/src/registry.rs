//! The plugins of this process by name, and a plugin together with its prepared value.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, timeout_at};

use crate::cache::CacheKey;
use crate::config::{ConfError, parse_conf};
use crate::containment::{ContainedDrop, panic_text, poll_caught};
use crate::plugin::{Action, PluginError, PreparedPlugin};
use crate::request::Request;
use crate::response::Response;
use crate::tasks::Tasks;

/// How long preparing one conf may take. The gateway gives up after 5 s, while it holds a
/// lock over all its routes (docs/gateway.md, PrepareConf).
pub(crate) const PREPARE_DEADLINE: Duration = Duration::from_secs(1);

/// How many confs of one plugin may be prepared at a time, each on a thread of its own. A
/// plugin that never returns keeps its threads, and takes none from the others.
const MAX_PREPARING: usize = 4;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A plugin whose config type is forgotten.
trait ErasedPlugin: Send + Sync {
    fn prepare(self: Arc<Self>, conf: Vec<u8>) -> BoxFuture<'static, Result<Box<dyn Prepared>, ConfError>>;
    fn start<'a>(&'a self, tasks: &'a Tasks) -> BoxFuture<'a, Result<(), PluginError>>;
    fn stop(&self) -> BoxFuture<'_, ()>;
    /// Why a conf can't be read as this plugin's config.
    #[cfg(feature = "cli")]
    fn conf_error(&self, conf: &[u8]) -> Option<ConfError>;
}

/// A plugin together with one prepared value.
pub(crate) trait Prepared: Send + Sync {
    fn name(&self) -> &'static str;
    fn deadline(&self) -> Option<Duration>;
    fn cache_key(&self) -> Option<&CacheKey>;
    /// Notes that a decision can't be cached. Returns whether it is the first one.
    fn note_not_cached(&self) -> bool;
    fn on_request<'a>(&'a self, request: &'a mut Request<'_>) -> BoxFuture<'a, Result<Action, PluginError>>;
    fn on_response<'a>(&'a self, response: &'a mut Response<'_>) -> BoxFuture<'a, Result<(), PluginError>>;
}

struct WithPrepared<P: PreparedPlugin> {
    plugin: Arc<P>,
    deadline: Option<Duration>,
    cache_key: Option<CacheKey>,
    is_not_cached: AtomicBool,
    prepared: ContainedDrop<P::Prepared>,
}

impl<P: PreparedPlugin> ErasedPlugin for P {
    fn prepare(self: Arc<Self>, conf: Vec<u8>) -> BoxFuture<'static, Result<Box<dyn Prepared>, ConfError>> {
        Box::pin(async move {
            let config = parse_conf::<P::Config>(&conf)?;
            let prepared = PreparedPlugin::prepare(&*self, config).await;
            // Contained before other code of the plugin's runs, which may panic as well.
            let prepared = ContainedDrop::new(prepared.map_err(|error| ConfError::whole(error.to_string()))?);
            let deadline = PreparedPlugin::deadline(&*self);
            let cache_key = PreparedPlugin::cache_key(&*self, prepared.get());
            if let Some(Err(error)) = cache_key.as_ref().map(CacheKey::check) {
                return Err(ConfError::whole(error.to_string()));
            }
            let is_not_cached = AtomicBool::new(false);
            Ok(Box::new(WithPrepared { plugin: self, deadline, cache_key, is_not_cached, prepared }) as _)
        })
    }

    fn start<'a>(&'a self, tasks: &'a Tasks) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(PreparedPlugin::start(self, tasks))
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(PreparedPlugin::stop(self))
    }

    #[cfg(feature = "cli")]
    fn conf_error(&self, conf: &[u8]) -> Option<ConfError> {
        parse_conf::<P::Config>(conf).err()
    }
}

impl<P: PreparedPlugin> Prepared for WithPrepared<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn cache_key(&self) -> Option<&CacheKey> {
        self.cache_key.as_ref()
    }

    fn note_not_cached(&self) -> bool {
        !self.is_not_cached.swap(true, Ordering::Relaxed)
    }

    fn on_request<'a>(&'a self, request: &'a mut Request<'_>) -> BoxFuture<'a, Result<Action, PluginError>> {
        Box::pin(self.plugin.on_request(self.prepared.get(), request))
    }

    fn on_response<'a>(&'a self, response: &'a mut Response<'_>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(self.plugin.on_response(self.prepared.get(), response))
    }
}

/// The plugins of this process, by name.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    plugins: BTreeMap<&'static str, Registered>,
    /// The first name that two plugins have.
    duplicate: Option<&'static str>,
}

#[derive(Clone)]
struct Registered {
    plugin: Arc<dyn ErasedPlugin>,
    /// A place for each thread that prepares a conf.
    threads: Arc<Semaphore>,
}

impl Registry {
    pub(crate) fn add<P: PreparedPlugin>(&mut self, plugin: P) {
        let threads = Arc::new(Semaphore::new(MAX_PREPARING));
        let registered = Registered { plugin: Arc::new(plugin), threads };
        if self.plugins.insert(P::NAME, registered).is_some() {
            self.duplicate.get_or_insert(P::NAME);
        }
    }

    /// The first name that two plugins have.
    pub(crate) fn duplicate(&self) -> Option<&'static str> {
        self.duplicate
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.plugins.keys().copied().collect()
    }

    /// Why a runner with these plugins refuses a conf without preparing it.
    #[cfg(feature = "cli")]
    pub(crate) fn conf_error(&self, plugin: &str, conf: &str) -> Option<String> {
        match self.plugins.get(plugin) {
            Some(registered) => registered.plugin.conf_error(conf.as_bytes()).map(|error| error.to_string()),
            None => Some(format!("no plugin has the name {plugin:?}; there is {}", self.names().join(", "))),
        }
    }

    /// Prepares a conf on a thread of its own, until the deadline. `None` if no plugin has
    /// this name.
    pub(crate) async fn prepare(
        &self,
        name: &[u8],
        conf: &[u8],
        deadline: Instant,
    ) -> Option<Result<Box<dyn Prepared>, ConfError>> {
        let name = std::str::from_utf8(name).ok()?;
        let Registered { plugin, threads } = self.plugins.get(name)?.clone();
        let conf = conf.to_vec();
        // All workers of a gateway prepare their routes at the same time, and each takes a moment.
        let Ok(Ok(thread)) = timeout_at(deadline, threads.acquire_owned()).await else {
            let why = "the plugin is preparing too many other confs, or never returns from one";
            return Some(Err(ConfError::whole(why.to_owned())));
        };
        let handle = Handle::current();
        // The plugin's code is a stranger's: it may block, panic, or never return.
        let preparing = spawn_blocking(move || {
            let prepared = handle.block_on(timeout_at(deadline, plugin.prepare(conf)));
            drop(thread);
            prepared
        });
        Some(match timeout_at(deadline, preparing).await {
            Ok(Ok(Ok(prepared))) => prepared,
            Ok(Ok(Err(_))) | Err(_) => {
                Err(ConfError::whole(format!("preparing it took longer than {PREPARE_DEADLINE:?}")))
            }
            Ok(Err(error)) => Err(ConfError::whole(format!("the plugin panicked: {}", join_text(error)))),
        })
    }

    /// Runs the plugins' `start` hooks, in the order of their names.
    pub(crate) async fn start(&self, tasks: &Tasks) -> Result<(), (&'static str, PluginError)> {
        for (name, Registered { plugin, .. }) in &self.plugins {
            let started = caught(|| plugin.start(tasks))
                .await
                .unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic)).into()));
            started.map_err(|error| (*name, error))?;
        }
        Ok(())
    }

    /// Runs the plugins' `stop` hooks. A hook that panics does not keep the others from
    /// running.
    pub(crate) async fn stop(&self) {
        for (name, Registered { plugin, .. }) in &self.plugins {
            if let Err(panic) = caught(|| plugin.stop()).await {
                tracing::error!(
                    plugin = name,
                    panic = panic_text(&*panic),
                    "the plugin's stop hook panicked"
                );
            }
        }
    }
}

/// Runs a hook of a plugin's and catches its panic, whenever it comes.
async fn caught<'a, T>(hook: impl FnOnce() -> BoxFuture<'a, T>) -> Result<T, Box<dyn Any + Send>> {
    let mut running = catch_unwind(AssertUnwindSafe(hook))?;
    std::future::poll_fn(|task| poll_caught(running.as_mut(), task)).await
}

fn join_text(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic_text(&*panic).to_owned(),
        Err(error) => error.to_string(),
    }
}
