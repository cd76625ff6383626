//! The way to a workspace: names, addresses, connections that died.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::super::workspace::connection::WorkspaceConnection;
use super::super::workspace::pool::Destination;
use super::super::workspace::pool::Pool;
use super::super::workspace::tls::Tls;
use super::harness::*;
use crate::forwarder::{CertificateTrust, ForwarderLimits};
use crate::resolver::NameServers;
use apisix_plugin_runner::Upstream;
use kube_coders_test_support::NameServer;

/// A request for this upstream.
fn get(served: &Served, upstream: &Upstream) -> String {
    let stamp = served.key.make(upstream, SystemTime::now() + Duration::from_secs(60));
    format!("GET / HTTP/1.1\r\nHost: h\r\nX-Kube-Coders-Stamp: {stamp}\r\n\r\n")
}

#[tokio::test]
async fn a_name_that_can_not_be_resolved_is_said_to_be() {
    let served = Served::new().await;
    let mut gateway = served.connect().await;
    let upstream: Upstream = "http://code-alice.test:1".parse().unwrap();
    let stamp = served.key.make(&upstream, SystemTime::now() + Duration::from_secs(60));
    gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Kube-Coders-Stamp: {stamp}\r\n\r\n")).await;
    assert_refused(&gateway.response().await, 503, "resolver-unavailable");
}

#[tokio::test]
async fn a_workspace_that_does_not_listen_is_starting() {
    let served = Served::new().await;
    let workspace = Workspace::new().await;
    let request = served.get("/", &workspace);
    drop(workspace);
    let mut gateway = served.connect().await;
    gateway.write(request).await;
    let response = gateway.response().await;
    assert_refused(&response, 503, "workspace-starting");
    assert!(response.0.contains("retry-after: 5\r\n"), "{}", response.0);
}

/// Whatever the TTL of the old address is: here a minute or more.
#[tokio::test]
async fn a_workspace_that_moved_is_reached_at_its_new_address() {
    let names = NameServer::start().await.unwrap();
    let workspace = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = workspace.local_addr().unwrap().port();
    names.set("code-alice.test", ["127.0.0.9".parse::<IpAddr>().unwrap()]);
    let servers = NameServers::Listed(vec![names.address()]);
    let served = Served::asking(&servers, CertificateTrust::System, ForwarderLimits::default(), DRAIN).await;
    let upstream: Upstream = format!("http://code-alice.test:{port}").parse().unwrap();
    let mut gateway = served.connect().await;
    gateway.write(get(&served, &upstream)).await;
    assert_refused(&gateway.response().await, 503, "workspace-starting");
    names.set("code-alice.test", ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    let answering = tokio::spawn(async move {
        let mut inside = Peer::new(workspace.accept().await.unwrap().0);
        inside.head().await;
        inside.answer("moved").await;
        inside
    });
    // The name is asked for at most once a second.
    let since = std::time::Instant::now();
    let body = within(async {
        loop {
            gateway.write(get(&served, &upstream)).await;
            let (head, body) = gateway.response().await;
            if head.starts_with("HTTP/1.1 200 ") {
                return body;
            }
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        }
    })
    .await;
    assert_eq!(body, "moved");
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    answering.await.unwrap();
}

#[tokio::test]
async fn a_network_without_a_way_is_a_workspace_that_starts() {
    let served = Served::new().await;
    // No route leads to a multicast address with TCP (RFC 9293, section 3.9.2.3).
    let upstream: Upstream = "http://224.0.0.1:80".parse().unwrap();
    let mut gateway = served.connect().await;
    gateway.write(get(&served, &upstream)).await;
    assert_refused(&gateway.response().await, 503, "workspace-starting");
}

/// A peer that takes connections and says nothing delays a handshake as one that takes none.
#[tokio::test]
async fn a_connection_has_a_time_by_setting_and_by_choice() {
    let brief = Duration::from_millis(100);
    for (setting, chosen) in [(brief, None), (Duration::from_secs(600), Some(brief))] {
        let limits = ForwarderLimits { connect: setting, ..ForwarderLimits::default() };
        let served = Served::with(limits, DRAIN).await;
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let upstream: Upstream = format!("https://{}", silent.local_addr().unwrap()).parse().unwrap();
        let upstream = match chosen {
            Some(chosen) => upstream.connect_timeout(chosen).unwrap(),
            None => upstream,
        };
        let mut gateway = served.connect().await;
        gateway.write(get(&served, &upstream)).await;
        assert_refused(&gateway.response().await, 503, "workspace-starting");
    }
}

#[tokio::test]
async fn a_connection_that_died_while_idle_is_replaced() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for turn in 0..20 {
        let stamp = served.stamp(&workspace);
        gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n{stamp}\r\nbody")).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        assert_eq!(inside.exactly(4).await, "body");
        inside.answer("").await;
        let (head, _) = gateway.response().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{turn}: {head}");
        // Dropped here: closed, whether the forwarder has seen it or not.
    }
}

/// The kernel has not heard that the connection is dead, and the first write tells.
#[tokio::test]
async fn a_request_of_which_nothing_was_sent_is_sent_on_another_connection() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let upstream: Upstream = format!("http://{}", workspace.address).parse().unwrap();
    let (addresses, tls) = ([workspace.address.ip()], Tls::new(CertificateTrust::System));
    let opened = WorkspaceConnection::open(&upstream, &addresses, &tls, PATIENCE).await;
    let mut dead = opened.unwrap_or_else(|error| panic!("{error}"));
    let _first = workspace.accept().await;
    dead.stream.stream.shutdown().await.unwrap();
    assert!(dead.is_quiet(), "only a write tells");
    served.forwarder.pool.put(Destination::of(&upstream), dead, PATIENCE);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n{stamp}\r\nbody")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    assert_eq!(inside.exactly(4).await, "body");
    inside.answer("once").await;
    assert_eq!(gateway.response().await.1, "once");
    assert!(workspace.is_untouched().await);
}

#[tokio::test]
async fn an_idle_connection_is_for_one_name_only() {
    let workspace = Workspace::new().await;
    let (pool, tls) = (Pool::new(10, PATIENCE), Tls::new(CertificateTrust::System));
    let of =
        |name: &str| -> Upstream { format!("http://{name}:{}", workspace.address.port()).parse().unwrap() };
    let (alice, addresses) = (of("code-alice"), [workspace.address.ip()]);
    let opened = WorkspaceConnection::open(&alice, &addresses, &tls, PATIENCE).await;
    pool.put(Destination::of(&alice), opened.ok().unwrap(), PATIENCE);
    assert!(pool.take(&Destination::of(&of("code-bob")), &addresses).is_none());
    assert!(pool.take(&Destination::of(&alice), &addresses).is_some());
}
