//! The unix socket that the gateway calls: its file, its peers, its connections, and the
//! way from one runner to the next.

pub(crate) mod admission;
mod event_descriptor;
pub(crate) mod file_watch;
pub(crate) mod limit_log;
mod log_throttle;
pub(crate) mod process_end;
pub(crate) mod server;
#[cfg(feature = "cli")]
pub(crate) mod shutdown;
pub(crate) mod socket_file;
pub(crate) mod takeover;

pub use admission::GatewayProcess;
pub use limit_log::LimitLog;
pub use process_end::{death_of, end_of};
#[cfg(feature = "cli")]
pub use shutdown::{Shutdown, Signals};
pub use socket_file::BindError;
pub use takeover::Succession;
