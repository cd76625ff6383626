//! What does a call cost in this runner, next to a server that does nothing?
//!
//! `cargo bench --bench runner` measures, in one run and in turn, (a) a server
//! that cuts frames and answers a fixed one without looking, (b) the runner with
//! the plugin `greet`, which asks for one variable, and (c) the runner with
//! `user-upstream`; at 1, 8, 32 and 64 connections, each call with 13 headers, a
//! cookie of 1.2 KB and an X-Userinfo of 800 bytes, of 1,000 users in rotation.
//! The servers are processes of their own. CPU is theirs, from the kernel's
//! account of their threads. Each number is the median of several rounds, in each
//! of which the three take turns; the ratios are medians of each round's own and
//! are what to trust. All users have called before, so (c) knows them: it is what
//! a browser's second request costs.
//!
//! It then sends requests through a stand-in for the gateway, with and without a cache of
//! decisions in direct mode.

// What production leaves to one place, tests and tools may do.
#![allow(clippy::disallowed_methods)]
// To print is what it is for.
#![allow(clippy::print_stdout)]

mod cache;
#[allow(dead_code, reason = "the benchmark of identities has more to call with")]
mod calls;
#[allow(dead_code, reason = "the benchmark of identities measures more")]
mod load;
#[allow(dead_code, reason = "the benchmark of identities measures memory")]
mod server;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use calls::{Calls, USERS};
use load::{Measured, Ratios, Target};
use server::{Server, Subject};

/// The command's, for all alike.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many connections call at a time.
const CONNECTIONS: [usize; 4] = [1, 8, 32, 64];

/// How often each pair of server and number of connections is measured.
const ROUNDS: usize = 9;

/// How long one measurement lasts, after a fifth of it to warm up.
const ROUND: Duration = Duration::from_millis(800);

/// What user-upstream should reach at 32 connections: this part of the
/// reference's calls, at this multiple of its CPU.
const AIM_CALLS: f64 = 0.6;
const AIM_CPU: f64 = 2.0;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    // The benchmark starts itself once for each server.
    if args.next().as_deref() == Some("serve") {
        let (Some(subject), Some(socket)) = (args.next(), args.next()) else {
            return Err("serve: too few words".into());
        };
        return server::serve(subject.parse()?, &socket, args.next().as_deref());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare())
}

async fn compare() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let calls = Calls::new(USERS);
    let names = calls.name_server().await?;
    let mut targets = Vec::new();
    for subject in Subject::ALL {
        let server = Server::start(subject, folder.path(), names.address()).await?;
        targets.push(Target::new(Arc::new(server), subject.plugin(), &calls).await?);
    }
    println!(
        "{:>11}  {:<15} {:>9} {:>9} {:>9} {:>10}   of the reference",
        "connections", "server", "calls/s", "p50 µs", "p99 µs", "CPU µs"
    );
    let mut aims = Vec::new();
    for connections in CONNECTIONS {
        let mut rounds: Vec<Vec<Measured>> = vec![Vec::new(); targets.len()];
        for _ in 0..ROUNDS {
            for (target, rounds) in targets.iter().zip(&mut rounds) {
                rounds.push(target.measure(connections, ROUND).await?);
            }
        }
        for (target, measured) in targets.iter().zip(&rounds) {
            let ratios = Ratios::median(measured, &rounds[0]);
            println!(
                "{connections:>11}  {:<15} {}   {ratios}",
                target.subject().to_string(),
                Measured::median(measured)
            );
            if connections == 32 && target.subject() == Subject::UserUpstream {
                aims.push(ratios);
            }
        }
    }
    let user_upstream = targets.iter().find(|target| target.subject() == Subject::UserUpstream);
    cache::compare(user_upstream.ok_or("no server with user-upstream")?.server(), &calls).await?;
    for Ratios { calls, cpu, .. } in aims {
        let verdict = |reached: bool| if reached { "reached" } else { "MISSED" };
        println!(
            "user-upstream at 32 connections: {calls:.2} of the reference's calls (aim: at least {AIM_CALLS}, {}), {cpu:.2} times its CPU (aim: at most {AIM_CPU}, {})",
            verdict(calls >= AIM_CALLS),
            verdict(cpu <= AIM_CPU)
        );
    }
    Ok(())
}
