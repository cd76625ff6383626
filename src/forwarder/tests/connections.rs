//! Connections: reuse, limits, the drain.

use super::super::listener::CLOSED_UNANSWERED;
use super::super::strangers::MAX_STRANGERS;
use super::super::workspace::connection::WorkspaceConnection;
use super::super::workspace::pool::Destination;
use super::super::workspace::pool::Pool;
use super::super::workspace::tls::Tls;
use super::harness::*;
use crate::forwarder::{CertificateTrust, ForwarderLimits};
use apisix_plugin_runner::Upstream;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

#[tokio::test]
async fn connections_are_reused_on_both_sides() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/0", &workspace)).await;
    let mut inside = workspace.accept().await;
    for turn in 0..5 {
        assert!(inside.head().await.starts_with(&format!("GET /{turn} HTTP/1.1\r\n")));
        inside.answer("hello").await;
        assert_eq!(gateway.response().await.1, "hello");
        let mut next = served.connect().await;
        std::mem::swap(&mut gateway, &mut next);
        // The first connection is as good as a new one.
        if turn % 2 == 0 {
            gateway = next;
        }
        gateway.write(served.get(&format!("/{}", turn + 1), &workspace)).await;
    }
    assert!(workspace.is_untouched().await);
}

#[tokio::test]
async fn connections_are_not_shared_between_upstreams() {
    let (served, alice, bob) = (Served::new().await, Workspace::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for workspace in [&alice, &bob] {
        gateway.write(served.get("/", workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.answer("").await;
        gateway.response().await;
        // Alice's connection stays open while Bob's is made.
        #[allow(clippy::disallowed_methods)]
        std::mem::forget(inside);
    }
    assert!(alice.is_untouched().await && bob.is_untouched().await);
}

/// Many users at once, over connections of the gateway's that they share, on
/// more than one thread: what each reads comes from their own workspace.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_is_never_answered_by_another_workspace() {
    let served = Arc::new(Served::with(ForwarderLimits { max_idle: 3, ..Default::default() }, DRAIN).await);
    let mut workspaces = Vec::new();
    for number in 0..4 {
        let workspace = Arc::new(Workspace::new().await);
        workspaces.push(Arc::clone(&workspace));
        tokio::spawn(async move {
            while let Ok((stream, _)) = workspace.listener.accept().await {
                tokio::spawn(async move {
                    let mut peer = Peer::new(stream);
                    while peer.stream.peek(&mut [0]).await.is_ok_and(|count| count > 0) {
                        let line = peer.until("\r\n").await;
                        peer.head().await;
                        peer.answer(&format!("{number} {line}")).await;
                    }
                });
            }
        });
    }
    let gateways = (0..8).map(|gateway| {
        let (served, workspaces) = (Arc::clone(&served), workspaces.clone());
        tokio::spawn(async move {
            let mut peer = served.connect().await;
            for turn in 0..100 {
                let number = (gateway + turn * 7) % workspaces.len();
                peer.write(served.get(&format!("/{gateway}/{turn}"), &workspaces[number])).await;
                assert_eq!(peer.response().await.1, format!("{number} GET /{gateway}/{turn} HTTP/1.1\r\n"));
            }
        })
    });
    for gateway in gateways.collect::<Vec<_>>() {
        gateway.await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_serves_only_so_many_requests() {
    let limits = ForwarderLimits { max_requests: 2, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for _ in 0..3 {
        gateway.write(served.get("/1", &workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.answer("").await;
        gateway.response().await;
        gateway.write(served.get("/2", &workspace)).await;
        inside.head().await;
        // The last response passes as a whole, piece by piece.
        inside.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla").await;
        gateway.head().await;
        assert_eq!(gateway.exactly(2).await, "la");
        inside.write("st").await;
        assert_eq!(gateway.exactly(2).await, "st");
        assert_eq!(inside.rest().await, "");
    }
}

#[tokio::test]
async fn a_connection_that_the_workspace_will_close_is_not_kept() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for line in ["Keep-Alive: timeout=1", "Connection: close"] {
        gateway.write(served.get("/", &workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.write(format!("HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: 0\r\n\r\n")).await;
        gateway.response().await;
        assert_eq!(inside.rest().await, "");
    }
    // One that it will close in 2 s is not used for what might come too late.
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=2\r\nContent-Length: 0\r\n\r\n").await;
    gateway.response().await;
    pass(Duration::from_millis(1100)).await;
    gateway.write(served.get("/", &workspace)).await;
    workspace.accept().await.head().await;
    assert_eq!(inside.rest().await, "");
}

#[tokio::test]
async fn idle_connections_have_a_limit_and_an_end() {
    for (max_idle, idle) in [(1, PATIENCE * 10), (2, Duration::from_millis(200))] {
        let limits = ForwarderLimits { max_idle, idle, ..ForwarderLimits::default() };
        let served = Served::with(limits, DRAIN).await;
        let (alice, bob) = (Workspace::new().await, Workspace::new().await);
        let mut gateway = served.connect().await;
        let mut inside = Vec::new();
        for workspace in [&alice, &bob] {
            gateway.write(served.get("/", workspace)).await;
            let mut peer = workspace.accept().await;
            peer.head().await;
            peer.answer("").await;
            gateway.response().await;
            inside.push(peer);
        }
        assert_eq!(inside[0].rest().await, "");
        if max_idle == 1 {
            // Bob's has made Alice's go, and stays.
            gateway.write(served.get("/again", &bob)).await;
            assert!(inside[1].head().await.starts_with("GET /again "));
        } else {
            assert_eq!(inside[1].rest().await, "");
        }
    }
}

#[tokio::test]
async fn an_idle_connection_is_not_used_for_an_address_that_the_name_has_lost() {
    let workspace = Workspace::new().await;
    let pool = Pool::new(10, PATIENCE);
    let upstream: Upstream = format!("http://code-alice:{}", workspace.address.port()).parse().unwrap();
    let destination = Destination::of(&upstream);
    let (old, new) = ("127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap());
    let (addresses, tls) = ([old], Tls::new(CertificateTrust::System));
    let open = || WorkspaceConnection::open(&upstream, &addresses, &tls, PATIENCE);
    pool.put(destination.clone(), open().await.ok().unwrap(), PATIENCE);
    assert!(pool.take(&destination, &[new, old]).is_some());
    assert!(pool.take(&destination, &[new, old]).is_none());
    pool.put(destination.clone(), open().await.ok().unwrap(), PATIENCE);
    assert!(pool.take(&destination, &[new]).is_none());
    workspace.accept().await;
    // It was closed, not kept for better days.
    assert_eq!(workspace.accept().await.rest().await, "");
    assert!(pool.take(&destination, &[old]).is_none());
}

#[tokio::test]
async fn the_number_of_connections_is_limited() {
    let limits = ForwarderLimits { max_connections: 1, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut first = served.connect().await;
    first.write(served.upgrade(&workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    // A tunnel holds its place until it ends.
    inside.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n").await;
    first.head().await;
    for _ in 0..3 {
        let mut second = served.connect().await;
        second.write(served.get("/", &workspace)).await;
        let response = second.response().await;
        assert_refused(&response, 503, "runner-busy");
        assert!(response.0.contains("retry-after: 5\r\n"), "{}", response.0);
        first.write("x").await;
        inside.exactly(1).await;
    }
    assert_eq!(served.forwarder.counters.refused(), [("runner-busy", 3)].into());
    drop(first);
    drop(inside);
    within(async { while served.first_answer().await != "HTTP/1.1 403" {} }).await;
}

/// Connections that have sent a valid stamp count, in use or idle: twice as many as may be in use.
#[tokio::test]
async fn the_number_of_open_connections_is_limited() {
    let limits = ForwarderLimits { max_connections: 1, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut inside = None;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut peer = served.connect().await;
        peer.write(served.get("/", &workspace)).await;
        if inside.is_none() {
            inside = Some(workspace.accept().await);
        }
        let inside = inside.as_mut().unwrap();
        inside.head().await;
        inside.answer("").await;
        peer.response().await;
        idle.push(peer);
    }
    let mut third = served.connect().await;
    third.write(served.get("/", &workspace)).await;
    assert_refused(&third.response().await, 503, "runner-busy");
    // An idle connection that ends makes room.
    drop(idle.pop());
    within(async {
        while served.forwarder.sockets.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    third.write(served.get("/again", &workspace)).await;
    assert!(inside.unwrap().head().await.starts_with("GET /again "));
}

/// Any process of the machine can connect, and send nothing or a part of a head.
#[tokio::test]
async fn silent_connections_keep_no_request_out() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut silent = Vec::new();
    for number in 0..=MAX_STRANGERS {
        let mut peer = served.connect().await;
        if number % 2 == 0 {
            peer.write("GET / HTTP/1.1\r\nHost: h\r\n").await;
        }
        silent.push(peer);
    }
    assert_eq!(silent[0].rest().await, "", "the oldest one is closed");
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    // A connection that has sent a stamp is none of them from here on.
    for _ in 0..MAX_STRANGERS {
        silent.push(served.connect().await);
    }
    inside.answer("hello").await;
    assert_eq!(gateway.response().await.1, "hello");
    assert!(served.forwarder.counters.refused()[CLOSED_UNANSWERED] > 1);
}

/// The second one has sent a request without a stamp, which proves nothing.
#[tokio::test]
async fn a_connection_without_a_stamp_has_a_short_time_to_its_first_byte() {
    let first_byte = Duration::from_millis(200);
    let limits = ForwarderLimits { first_byte, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let (mut silent, mut stranger) = (served.connect().await, served.connect().await);
    stranger.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_refused(&stranger.response().await, 403, "stamp-refused");
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.answer("").await;
    gateway.response().await;
    assert_eq!((silent.rest().await, stranger.rest().await), (String::new(), String::new()));
    gateway.write(served.get("/again", &workspace)).await;
    assert!(inside.head().await.starts_with("GET /again "));
}

#[tokio::test]
async fn one_user_has_only_so_many_connections() {
    let limits = ForwarderLimits { max_of_subject: 2, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let (mut tunnel, mut request) = (served.connect().await, served.connect().await);
    tunnel.write(served.upgrade(&workspace)).await;
    let mut tunnel_inside = workspace.accept().await;
    tunnel_inside.head().await;
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n";
    tunnel_inside.write(agreed).await;
    tunnel.head().await;
    request.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    let mut third = served.connect().await;
    third.write(served.get("/", &workspace)).await;
    let response = third.response().await;
    assert_refused(&response, 429, "too-many-connections");
    assert!(response.0.contains("retry-after: 5\r\n"), "{}", response.0);
    assert_eq!(served.forwarder.counters.refused(), [("too-many-connections", 1)].into());
    let known = || served.forwarder.subjects.activities();
    let [alice] = &known()[..] else { panic!("{:?}", known()) };
    assert_eq!((&*alice.subject, alice.open, alice.tunnels.len()), ("alice", 2, 1));
    assert_eq!(alice.tunnels[0].0.port(), workspace.address.port());
    // What is over makes room, on the connection that was refused as well.
    inside.answer("").await;
    request.response().await;
    third.write(served.get("/again", &workspace)).await;
    assert!(inside.head().await.starts_with("GET /again "));
    inside.answer("").await;
    third.response().await;
    drop((tunnel, tunnel_inside));
    within(async {
        while known()[0].open > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(known()[0].tunnels.is_empty());
}

/// Sixteen users with 256 connections each would take all 4096 places.
#[tokio::test]
async fn many_greedy_users_leave_a_place_for_the_next_user() {
    let limits = ForwarderLimits { max_connections: 64, max_of_subject: 8, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let (mut held, mut refused) = (Vec::new(), 0);
    for subject in 0..12 {
        for _ in 0..8 {
            let mut gateway = served.connect().await;
            gateway.write(served.get_of(&format!("greedy-{subject}"), &workspace)).await;
            tokio::select! {
                mut inside = workspace.accept() => {
                    inside.head().await;
                    held.push((gateway, inside));
                }
                response = gateway.response() => {
                    assert_refused(&response, 429, "too-many-connections");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 0 && held.len() < 64, "{}", held.len());
    let mut alice = served.connect().await;
    alice.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.answer("hello").await;
    assert_eq!(alice.response().await.1, "hello");
}

#[tokio::test]
async fn a_drain_finishes_requests_and_closes_idle_connections() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let (mut busy, mut idle) = (served.connect().await, served.connect().await);
    idle.write(served.get("/", &workspace)).await;
    let mut idle_inside = workspace.accept().await;
    idle_inside.head().await;
    busy.write(served.get("/", &workspace)).await;
    let mut busy_inside = workspace.accept().await;
    busy_inside.head().await;
    idle_inside.answer("").await;
    idle.response().await;

    served.stop.cancel();
    assert_eq!(idle.rest().await, "");
    assert_eq!(idle_inside.rest().await, "");
    assert!(TcpStream::connect(served.address).await.is_err());
    busy_inside.answer("finished").await;
    assert_eq!(busy.response().await.1, "finished");
    assert_eq!(busy.rest().await, "");
    assert_eq!(busy_inside.rest().await, "");
    within(served.serving).await.unwrap();
}

/// Whose connection waits to be accepted has been told that it is there.
#[tokio::test]
async fn a_drain_without_a_successor_serves_queued_connections() {
    const QUEUED: usize = 100;
    // The runtime may accept them all before it hears of the end, or hear of it first.
    for _ in 0..8 {
        let served = Served::new().await;
        let mut queued = Vec::new();
        for _ in 0..QUEUED {
            let mut stream = std::net::TcpStream::connect(served.address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            stream.set_nonblocking(true).unwrap();
            queued.push(stream);
        }
        served.stop.cancel();
        for stream in queued {
            let mut peer = Peer::new(TcpStream::from_std(stream).unwrap());
            assert_refused(&peer.response().await, 403, "stamp-refused");
        }
        within(served.serving).await.unwrap();
    }
}

/// The gateway may have sent a request before it hears that the connection ends.
#[tokio::test]
async fn a_drain_leaves_an_idle_connection_a_moment() {
    let served = Served::new().await;
    let mut idle = served.connect().await;
    idle.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_refused(&idle.response().await, 403, "stamp-refused");
    served.stop.cancel();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    idle.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let response = idle.response().await;
    assert_refused(&response, 403, "stamp-refused");
}

#[tokio::test]
async fn a_tunnel_lives_until_the_drain_deadline() {
    let served = Served::with(ForwarderLimits::default(), Duration::from_secs(1)).await;
    let workspace = Workspace::new().await;
    let mut gateway = served.connect().await;
    gateway.write(served.upgrade(&workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n").await;
    gateway.head().await;
    let mut idle = served.connect().await;

    served.stop.cancel();
    assert_eq!(idle.rest().await, "");
    gateway.write("still open").await;
    assert_eq!(inside.exactly(10).await, "still open");
    within(served.serving).await.unwrap();
    assert_eq!(gateway.rest().await, "");
    assert_eq!(inside.rest().await, "");
}
