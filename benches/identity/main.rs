//! What does it cost to believe a token, and not the gateway's word?
//!
//! `cargo bench --bench identity` measures, in one run, calls that carry an
//! X-Userinfo of 800 bytes, a cookie of 1.2 KB and an ID token, of 1,000 users in
//! rotation, at routes with `trust: gateway` and `trust: verified`: both look at
//! the same frames. Then unseen tokens, of each algorithm. Then
//! 100,000 users, whose tokens are signed with EdDSA, because it takes the least
//! time to make them; a token costs its signature once, and then its digest. They
//! get new tokens after that, as sessions are renewed. It fails where an aim is missed.
//!
//! The runner is a process of its own. CPU is its own, from the kernel's account
//! of its threads, and the difference between two routes is the median of each
//! round's.

// What production leaves to one place, tests and tools may do.
#![allow(clippy::disallowed_methods)]
// To print is what it is for, and what can't be made here can't be measured.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../runner/calls.rs"]
#[allow(dead_code, reason = "it has what the other benchmark calls with, too")]
mod calls;
#[path = "../../tests/it/issuer.rs"]
#[allow(dead_code, reason = "it can go wrong in more ways than are measured")]
mod issuer;
#[path = "../runner/load.rs"]
#[allow(dead_code, reason = "it has the other benchmark's ratios, too")]
mod load;
#[path = "../runner/server.rs"]
#[allow(dead_code, reason = "it has the other benchmark's servers, too")]
mod server;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::json;

use calls::{Calls, USER_UPSTREAM, USERS};
use issuer::Issuer;
use kube_coders_test_support::{Signer, claims};
use load::{Target, median};
use server::{Server, Subject};

/// The command's.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many connections call at a time.
const CONNECTIONS: usize = 32;

/// How often the two routes take turns, and for how long.
const ROUNDS: usize = 21;
const ROUND: Duration = Duration::from_millis(500);

/// How many users are many.
const MANY: usize = 100_000;

/// How many times each user's call with an unseen token is made.
const UNSEEN_ROUNDS: usize = 3;

const AIM_MORE_CPU: f64 = 1.0;
const AIM_UNSEEN: f64 = 80.0;
const AIM_MEMORY: u64 = 96 << 20;
const AIM_P99: f64 = 3.0;

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
    runtime.block_on(async {
        let algorithms = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
        let signers = algorithms.map(|algorithm| Signer::new(&format!("{algorithm:?}"), algorithm));
        let issuer = Issuer::start(&signers).await;
        let folder = tempfile::tempdir()?;
        known_users(&issuer, &signers, folder.path()).await?;
        let folder = tempfile::tempdir()?;
        many_users(&issuer, &signers[2], folder.path()).await
    })?;
    match IS_MISSED.load(Ordering::Relaxed) {
        true => Err("an aim was missed".into()),
        false => Ok(()),
    }
}

/// Whether any aim was missed.
static IS_MISSED: AtomicBool = AtomicBool::new(false);

fn verdict(reached: bool) -> &'static str {
    IS_MISSED.fetch_or(!reached, Ordering::Relaxed);
    if reached { "reached" } else { "MISSED" }
}

/// The conf of a route that believes this issuer's tokens.
fn verified(issuer: &Issuer) -> String {
    let identity: serde_json::Value = serde_json::from_str(&issuer.identity()).unwrap();
    json!({"identity": identity, "upstream": "http://code-{sub}.test:8443"}).to_string()
}

/// What a token costs that is known, and one that is not.
async fn known_users(issuer: &Issuer, signers: &[Signer], folder: &Path) -> Result<(), Box<dyn Error>> {
    let users = Calls::new(USERS);
    let names = users.name_server().await?;
    let server = Arc::new(Server::start(Subject::UserUpstream, folder, names.address()).await?);
    let calls = users.with_tokens(|subject| signers[0].token(&claims(&issuer.url(), subject)));
    let conf = verified(issuer);
    let gateway = Target::new(Arc::clone(&server), Some(USER_UPSTREAM), &calls).await?;
    let plugin = ("user-upstream", conf.as_str());
    let verified = Target::new(Arc::clone(&server), Some(plugin), &calls).await?;
    let (mut by_gateway, mut by_token, mut more) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let one = gateway.measure(CONNECTIONS, ROUND).await?.cpu;
        let other = verified.measure(CONNECTIONS, ROUND).await?.cpu;
        by_gateway.push(one);
        by_token.push(other);
        more.push(other - one);
    }
    let (by_gateway, by_token, more) = (median(by_gateway), median(by_token), median(more));
    println!("known users, CPU a call: trust gateway {by_gateway:.2} µs, trust verified {by_token:.2} µs");
    println!(
        "  verified takes {more:+.2} µs (aim: at most {AIM_MORE_CPU}, {})",
        verdict(more <= AIM_MORE_CPU)
    );
    for signer in signers {
        let mut costs = Vec::new();
        for round in 0..UNSEEN_ROUNDS {
            let unseen = users.with_tokens(|subject| {
                let mut claims = claims(&issuer.url(), subject);
                claims["jti"] = json!(round);
                signer.token(&claims)
            });
            costs.push(Target::cpu_of_each_once(&server, plugin, &unseen, CONNECTIONS).await?);
        }
        let aim = match signer.algorithm {
            Algorithm::RS256 => {
                format!(" (aim: at most {AIM_UNSEEN}, {})", verdict(median(costs.clone()) <= AIM_UNSEEN))
            }
            _ => String::new(),
        };
        println!("an unseen token, {:?}: {:.1} µs CPU a call{aim}", signer.algorithm, median(costs));
    }
    // The same way, with nothing to check.
    let seen = Target::cpu_of_each_once(&server, plugin, &calls, CONNECTIONS).await?;
    println!("  of which a call with a known token takes {seen:.1} µs");
    Ok(())
}

/// What 100,000 users take.
async fn many_users(issuer: &Issuer, signer: &Signer, folder: &Path) -> Result<(), Box<dyn Error>> {
    let users = Calls::new(MANY);
    let names = users.name_server().await?;
    let server = Arc::new(Server::start(Subject::UserUpstream, folder, names.address()).await?);
    let before = server.memory()?;
    let calls = users.with_tokens(|subject| signer.token(&claims(&issuer.url(), subject)));
    let conf = verified(issuer);
    let plugin = ("user-upstream", conf.as_str());
    let many = Target::new(Arc::clone(&server), Some(plugin), &calls).await?;
    // The first pass looked every name up; now every token is known for a minute.
    Target::cpu_of_each_once(&server, plugin, &calls, CONNECTIONS).await?;
    let renewed = users.with_tokens(|subject| {
        let mut claims = claims(&issuer.url(), subject);
        claims["jti"] = json!("renewed");
        signer.token(&claims)
    });
    Target::cpu_of_each_once(&server, plugin, &renewed, CONNECTIONS).await?;
    let few = many.first(USERS);
    let (mut one, mut other, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..9 {
        let (few, many) =
            (few.measure(CONNECTIONS, ROUND).await?, many.measure(CONNECTIONS, 2 * ROUND).await?);
        one.push(few.p99);
        other.push(many.p99);
        ratios.push(many.p99 / few.p99);
    }
    let (memory, ratio) = (server.memory()?, median(ratios));
    println!(
        "{MANY} users in rotation, each with a second token: {:.1} MiB at most (aim: under {}, {}), {:.1} MiB before the first",
        memory as f64 / 1_048_576.0,
        AIM_MEMORY >> 20,
        verdict(memory < AIM_MEMORY),
        before as f64 / 1_048_576.0
    );
    println!(
        "  p99 {:.0} µs, of {USERS} users {:.0} µs: {ratio:.2} times (aim: at most {AIM_P99}, {})",
        median(other),
        median(one),
        verdict(ratio <= AIM_P99)
    );
    Ok(())
}
