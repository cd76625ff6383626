//! Each rule on a route that is good but for one thing, and the forms that a route has.

mod faults;
mod forms;
mod rules;

use apisix_plugin_runner::upstream::UpstreamMode;

use super::*;
use kube_coders_identity::UserUpstreamConfig;
// The texts of what is wrong with a conf are tested as a runner writes them.
use apisix_plugin_runner::config::parse_conf;

/// What is found in these files, by a program with a plugin `other` that has no conf.
fn found(files: &[(&str, &str)], flags: &[&str]) -> Result<Vec<Finding>, CheckError> {
    Ok(report_of(files, flags)?.findings)
}

fn report_of(files: &[(&str, &str)], flags: &[&str]) -> Result<Report, CheckError> {
    let mut options = Options {
        mode: UpstreamMode::Forward,
        forwarder: ([127, 0, 0, 1], 9181).into(),
        gateway_version: None,
    };
    for flag in flags.chunks(2) {
        match flag {
            ["--upstream-mode", mode] => options.mode = mode.parse().unwrap(),
            ["--forwarder-address", address] => options.forwarder = address.parse().unwrap(),
            ["--gateway-version", version] => options.gateway_version = Some(version.parse().unwrap()),
            _ => panic!("{flag:?}"),
        }
    }
    let judge = |name: &str, conf: &str| match name {
        "user-upstream" => {
            let config = parse_conf::<UserUpstreamConfig>(conf.as_bytes());
            Some(
                config
                    .map_err(|error| error.to_string())
                    .and_then(|config| way_is_checked(&config, options.mode)),
            )
        }
        "other" => Some(parse_conf::<()>(conf.as_bytes()).map_err(|error| error.to_string())),
        _ => None,
    };
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| File { name: (*name).to_owned(), text: (*text).to_owned() })
        .collect();
    super::check(&files, options, &judge)
}

/// As the runner refuses https in direct mode.
fn way_is_checked(config: &UserUpstreamConfig, mode: UpstreamMode) -> Result<(), String> {
    use apisix_plugin_runner::Scheme;
    match config.upstream_mode.unwrap_or(mode) {
        UpstreamMode::Direct if config.upstream.scheme() == Scheme::Https => {
            Err("upstream: https:// in direct mode".to_owned())
        }
        _ => Ok(()),
    }
}

/// Asserts what is found, each as its rule's code and its path.
#[track_caller]
fn check(files: &[(&str, &str)], flags: &[&str], expected: &[(&str, &str)]) {
    let findings = found(files, flags).unwrap();
    let findings: Vec<_> =
        findings.iter().map(|finding| (finding.rule.facts().code, &*finding.path)).collect();
    assert_eq!(findings, expected);
}
