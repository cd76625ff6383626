//! Parts for programs that start a runner with [`Runner::serve`](crate::Runner::serve).
//!
//! | I want to | use |
//! |---|---|
//! | drain at the first signal, and end at the second | [`Shutdown`], [`Signals`] |
//! | serve the workers of the gateway that started this process | [`GatewayProcess`] |
//! | learn that the parent or another process has ended | [`death_of`], [`end_of`] |
//! | hand connections of a TCP service over to the next runner | [`Succession`] |
//! | log connections over a limit, but not each of them | [`LimitLog`] |

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
