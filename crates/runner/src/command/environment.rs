//! What a program reads from its environment.

use std::env::VarError;

use super::checker::Mistakes;

/// The program's name, and what the gateway says in the environment of a runner that it
/// starts.
///
/// ```
/// use apisix_plugin_runner::command::{Environment, RunArgs};
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct MyCommand {
///     #[command(flatten)]
///     run: RunArgs,
/// }
///
/// // A gateway that starts a runner says where it listens.
/// let environment = Environment {
///     listen_address: Some("unix:/usr/local/apisix/conf/apisix-1.sock".to_owned()),
///     ..Environment::without_gateway("my-plugins")
/// };
/// let typed = MyCommand::parse_from(["my-plugins"]);
/// assert!(typed.run.socket.is_spawned(&environment));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The program's name. Its socket is `/run/<name>/runner.sock` by default.
    pub program: &'static str,
    /// `APISIX_LISTEN_ADDRESS`
    pub listen_address: Option<String>,
    /// `APISIX_CONF_EXPIRE_TIME`
    pub conf_expire_time: Option<String>,
}

impl Environment {
    /// The environment of a program that no gateway started.
    #[must_use]
    pub fn without_gateway(program: &'static str) -> Self {
        Self { program, listen_address: None, conf_expire_time: None }
    }

    /// Reads the environment of this process.
    ///
    /// # Errors
    ///
    /// A variable that is not UTF-8.
    pub fn read(program: &'static str) -> Result<Self, Mistakes> {
        Ok(Self {
            program,
            listen_address: variable("APISIX_LISTEN_ADDRESS")?,
            conf_expire_time: variable("APISIX_CONF_EXPIRE_TIME")?,
        })
    }
}

#[allow(clippy::disallowed_methods)] // the one place that reads the environment
fn variable(name: &str) -> Result<Option<String>, Mistakes> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(value)) => Err(Mistakes::one(format!("{name} {value:?}: not UTF-8"))),
    }
}
