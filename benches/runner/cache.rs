//! What a cached decision saves: the same requests through a stand-in for the gateway,
//! which calls the runner for each of them, or caches its decisions.

use std::error::Error;
use std::io;
use std::time::{Duration, Instant};

use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Outcome, Route};

use crate::calls::{Calls, USER_UPSTREAM};
use crate::load::{median, micros};
use crate::server::{Server, cpu_of};

/// How often each way is measured, in turn.
const ROUNDS: usize = 15;

/// How many requests one measurement has. They take less than the 10 s for which a decision
/// is cached at most.
const REQUESTS: usize = 20_000;

/// What one measurement, or the median of several, says of a request, in microseconds.
struct Cost {
    time: f64,
    gateway_cpu: f64,
    runner_cpu: f64,
}

/// Prints what requests cost with and without the cache.
pub(crate) async fn compare(server: &Server, calls: &Calls) -> Result<(), Box<dyn Error>> {
    let conf = USER_UPSTREAM.1.replacen('{', r#"{"upstream_mode": "direct", "#, 1);
    let route = Route::new("direct").plugin(USER_UPSTREAM.0, &conf);
    let requests = calls.requests();
    println!("{:>23} {:>9} {:>14} {:>13}", "direct mode, a request", "µs", "stand-in's CPU", "runner's CPU");
    let gateway = || Gateway::connect(&server.socket);
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let caching = gateway().caches_decisions(Duration::from_secs(10));
        rounds[0].push(measure(server, &gateway(), &route, &requests).await?);
        rounds[1].push(measure(server, &caching, &route, &requests).await?);
        let called = caching.call_count();
        if usize::try_from(called)? != requests.len() {
            return Err(
                format!("{called} calls for {} users: decisions were not cached", requests.len()).into()
            );
        }
    }
    for (name, rounds) in ["each one called", "cached"].iter().zip(&rounds) {
        let median = |number: fn(&Cost) -> f64| median(rounds.iter().map(number).collect());
        let (time, gateway) = (median(|cost| cost.time), median(|cost| cost.gateway_cpu));
        println!("{name:>23} {time:>9.1} {gateway:>14.1} {:>13.1}", median(|cost| cost.runner_cpu));
    }
    Ok(())
}

/// One request after another, after each user has had one.
async fn measure(
    server: &Server,
    gateway: &Gateway,
    route: &Route,
    requests: &[ClientRequest],
) -> io::Result<Cost> {
    for request in requests {
        forwarded(gateway, route, request).await?;
    }
    let (start, own, runner) = (Instant::now(), cpu_of(std::process::id())?, server.cpu()?);
    for request in requests.iter().cycle().take(REQUESTS) {
        forwarded(gateway, route, request).await?;
    }
    let each = |time: Duration| micros(time) / REQUESTS as f64;
    Ok(Cost {
        time: each(start.elapsed()),
        gateway_cpu: each(cpu_of(std::process::id())? - own),
        runner_cpu: each(server.cpu()? - runner),
    })
}

/// A measurement of refusals would be worth nothing.
async fn forwarded(gateway: &Gateway, route: &Route, request: &ClientRequest) -> io::Result<()> {
    match gateway.call(route, request).await {
        Outcome::Forward(_) => Ok(()),
        Outcome::Answer(answer) => Err(io::Error::other(format!("refused: {answer:?}"))),
    }
}
