//! The hosts file comes first, whatever it says by now.

use std::fs;
use std::path::Path;

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use tempfile::TempDir;

use super::super::dns::name_server;
use super::super::hosts::{CHECK_INTERVAL, Hosts};
use super::server::Server;
use super::*;

async fn start(text: &str) -> (Server, Resolver, TempDir) {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    write(folder.path(), text);
    let config = ResolverConfig::from_name_servers(vec![name_server(server.address())]);
    let hosts = Hosts::read(&folder.path().join("hosts"));
    let resolver = Resolver::with(
        config,
        ResolverOpts::default(),
        &crate::resolver::SearchDomains::Listed(Vec::new()),
        crate::resolver::AddressPolicy::any(),
        hosts,
        Lifetimes::default(),
    )
    .unwrap();
    (server, resolver, folder)
}

fn write(folder: &Path, text: &str) {
    fs::write(folder.join("hosts"), text).unwrap();
}

#[tokio::test]
async fn a_name_in_the_file_sends_no_query() {
    let (server, resolver, _folder) = start("127.0.0.9 a.test\n::9 a.test\n").await;
    server.set("a.test", &["127.0.0.1"]);
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.9", "::9"]));
    assert_eq!(server.questions(), 0);
}

#[tokio::test]
async fn an_entry_that_is_added_counts_though_the_name_was_not_found() {
    let (_server, resolver, folder) = start("").await;
    assert_eq!(ask(&resolver, "a.test").await, Err(ResolveError::NotFound));
    write(folder.path(), "127.0.0.9 a.test\n");
    pass(CHECK_INTERVAL).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.9"]));
}

#[tokio::test]
async fn an_entry_that_is_added_counts_though_dns_knows_better() {
    let (server, resolver, folder) = start("").await;
    server.set("a.test", &["127.0.0.1"]);
    server.set("b.test", &["127.0.0.1"]);
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
    assert_eq!(ask(&resolver, "b.test").await, ips(&["127.0.0.1"]));
    write(folder.path(), "127.0.0.9 a.test\n");
    pass(CHECK_INTERVAL).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.9"]));
    let asked = server.questions();
    assert_eq!(at_once(&resolver, "b.test"), ips(&["127.0.0.1"]), "what is remembered of others stays");
    assert_eq!(server.questions(), asked);
}

#[tokio::test]
async fn an_entry_that_is_changed_or_removed_is_no_longer_used() {
    let (server, resolver, folder) = start("127.0.0.9 a.test\n").await;
    server.set("a.test", &["127.0.0.1"]);
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.9"]));
    write(folder.path(), "127.0.0.8 a.test\n");
    pass(CHECK_INTERVAL).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.8"]));
    write(folder.path(), "127.0.0.8 b.test\n");
    pass(CHECK_INTERVAL).await;
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
}

#[tokio::test]
async fn a_file_that_is_put_in_its_place_is_read() {
    let (_server, resolver, folder) = start("127.0.0.9 a.test\n").await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.9"]));
    let next = folder.path().join("next");
    fs::write(&next, "127.0.0.7 a.test\n").unwrap();
    fs::rename(next, folder.path().join("hosts")).unwrap();
    pass(CHECK_INTERVAL).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.7"]));
}

#[tokio::test]
async fn a_file_that_can_not_be_read_leaves_what_it_said() {
    let (_server, resolver, folder) = start("127.0.0.9 a.test\n").await;
    for broken in ["127.0.0.8 a.test\n\0", &"#".repeat((1 << 20) + 1)] {
        write(folder.path(), broken);
        pass(CHECK_INTERVAL).await;
        assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.9"]));
    }
    fs::remove_file(folder.path().join("hosts")).unwrap();
    pass(CHECK_INTERVAL).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.9"]));
    write(folder.path(), "127.0.0.6 a.test\n");
    pass(CHECK_INTERVAL).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.6"]));
}

/// The name servers know another address, which must not take the place of the file's.
#[tokio::test]
async fn an_entry_counts_though_its_address_takes_no_connection() {
    let (server, resolver, folder) = start("127.0.0.9 a.test\n").await;
    let again = async |name| resolver.resolve_unreachable(&host(name)).await;
    server.set("a.test", &["127.0.0.1"]);
    server.set("b.test", &["127.0.0.1"]);
    assert_eq!(again("a.test").await, ips(&["127.0.0.9"]), "no caller asked for it before");
    pass(Lifetimes::default().max_ttl).await;
    assert_eq!(again("a.test").await, ips(&["127.0.0.9"]), "what was remembered has expired");
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.9"]));
    assert_eq!(server.questions(), 0);
    assert_eq!(ask(&resolver, "b.test").await, ips(&["127.0.0.1"]));
    write(folder.path(), "127.0.0.9 a.test\n127.0.0.8 b.test\n");
    pass(CHECK_INTERVAL).await;
    assert_eq!(again("b.test").await, ips(&["127.0.0.8"]), "it was added since");
    assert_eq!(at_once(&resolver, "b.test"), ips(&["127.0.0.8"]));
}
