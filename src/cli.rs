//! Arguments, settings, the commands, and the assembly of `run`.

mod arguments;
mod call;
mod check;
mod explain;
mod install;
mod keeper;
pub(crate) mod program;
mod run;
mod settings;
