//! Upgrades: tunnels, and what is none.

use super::harness::*;

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_that_ends_half_by_half() {
    for gateway_ends_first in [true, false] {
        let (served, workspace) = (Served::new().await, Workspace::new().await);
        let mut gateway = served.connect().await;
        // Early bytes of the client's, in one piece with the request …
        gateway.write(served.upgrade(&workspace) + "early").await;
        let mut inside = workspace.accept().await;
        let head = inside.head().await;
        assert!(head.contains("Connection: upgrade\r\n") && head.contains("Upgrade: echo/1\r\n"), "{head}");
        assert!(!head.contains("stamp"), "{head}");
        // … and of the workspace's, in one piece with the answer.
        inside
            .write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\nfirst")
            .await;
        let head = gateway.head().await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert!(head.contains("Connection: upgrade\r\n") && head.contains("Upgrade: echo/1\r\n"), "{head}");
        assert_eq!(gateway.exactly(5).await, "first");
        assert_eq!(inside.exactly(5).await, "early");

        let (mut first, mut last) = if gateway_ends_first { (gateway, inside) } else { (inside, gateway) };
        first.write("bye").await;
        first.finish_writing().await;
        assert_eq!(last.rest().await, "bye");
        last.write("still here").await;
        assert_eq!(first.exactly(10).await, "still here");
        last.finish_writing().await;
        assert_eq!(first.rest().await, "");
    }
}

#[tokio::test]
async fn an_upgrade_may_be_declined() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.upgrade(&workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nContent-Length: 2\r\n\r\nno").await;
    let (head, body) = gateway.response().await;
    assert!(head.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{head}");
    assert_eq!(body, "no");
    // Both connections go on as if nothing had been asked.
    gateway.write(served.get("/next", &workspace)).await;
    assert!(inside.head().await.starts_with("GET /next "));
    inside.answer("yes").await;
    assert_eq!(gateway.response().await.1, "yes");
}

#[tokio::test]
async fn an_upgrade_that_was_not_requested_is_a_failure() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside
        .write("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nsmuggled")
        .await;
    assert_refused(&gateway.response().await, 502, "workspace-failed");
    assert_eq!(inside.rest().await, "");
}

/// A tunnel that both sides have agreed to.
async fn agreed(served: &Served, protocol: &str) -> (Peer, Peer) {
    let workspace = Workspace::new().await;
    let mut gateway = served.connect().await;
    gateway.write(served.upgrade(&workspace).replace("echo/1", protocol)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    let head =
        format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n");
    inside.write(head).await;
    gateway.head().await;
    (gateway, inside)
}

#[tokio::test]
async fn a_websocket_that_a_drain_ends_is_closed_with_1001() {
    let drain = std::time::Duration::from_millis(100);
    let served = Served::with(crate::forwarder::ForwarderLimits::default(), drain).await;
    let (mut gateway, mut inside) = agreed(&served, "WebSocket").await;
    gateway.write([0x81, 0x81, 1, 2, 3, 4, b'a' ^ 1]).await;
    inside.write([0x81, 1, b'b']).await;
    inside.exactly_bytes(7).await;
    gateway.exactly_bytes(3).await;
    // One that is within a frame, and one that is none.
    let (mut within, mut within_inside) = agreed(&served, "websocket").await;
    within_inside.write([0x81, 5, b'h']).await;
    within.exactly_bytes(3).await;
    let (mut other, mut other_inside) = agreed(&served, "echo/1").await;
    served.stop.cancel();
    assert_eq!(gateway.exactly_bytes(4).await, [0x88, 2, 0x03, 0xe9]);
    let close = inside.exactly_bytes(8).await;
    assert_eq!(close[..2], [0x88, 0x82]);
    assert_eq!([close[6] ^ close[2], close[7] ^ close[3]], [0x03, 0xe9]);
    for peer in [&mut gateway, &mut inside, &mut within, &mut other, &mut other_inside] {
        assert_eq!(peer.rest_bytes().await, b"");
    }
    assert_eq!(within_inside.rest_bytes().await[..2], [0x88, 0x82], "this way no frame is open");
    super::harness::within(served.serving).await.unwrap();
}

/// A logout does not reach an open tunnel, so its client has to connect again after a time.
#[tokio::test]
async fn a_tunnel_is_closed_once_it_is_too_old() {
    let limits = |tunnel| crate::forwarder::ForwarderLimits { tunnel, ..Default::default() };
    let life = std::time::Duration::from_millis(200);
    let served = Served::with(limits(Some(life)), DRAIN).await;
    let began = std::time::Instant::now();
    let (mut gateway, mut inside) = agreed(&served, "websocket").await;
    let (mut other, mut other_inside) = agreed(&served, "echo/1").await;
    // It is in use all the time.
    gateway.write([0x81, 0x81, 1, 2, 3, 4, b'a' ^ 1]).await;
    inside.exactly_bytes(7).await;
    assert_eq!(gateway.exactly_bytes(4).await, [0x88, 2, 0x03, 0xe9]);
    assert!(began.elapsed() >= life.mul_f64(0.9), "{:?}", began.elapsed());
    assert_eq!(inside.exactly_bytes(8).await[..2], [0x88, 0x82]);
    for peer in [&mut gateway, &mut inside, &mut other, &mut other_inside] {
        assert_eq!(peer.rest_bytes().await, b"");
    }
    let served = Served::with(limits(None), DRAIN).await;
    let (mut gateway, mut inside) = agreed(&served, "websocket").await;
    tokio::time::sleep(life).await;
    inside.write([0x81, 1, b'b']).await;
    assert_eq!(gateway.exactly_bytes(3).await, [0x81, 1, b'b']);
}

/// The gateway's read timeout would close a WebSocket on which nothing comes.
#[tokio::test]
async fn a_silent_websocket_gets_pings_whose_pongs_do_not_pass() {
    let ping = Some(std::time::Duration::from_millis(100));
    let limits = |ping| crate::forwarder::ForwarderLimits { ping, ..Default::default() };
    let served = Served::with(limits(ping), DRAIN).await;
    let (mut gateway, mut inside) = agreed(&served, "websocket").await;
    for _ in 0..2 {
        let ping = gateway.exactly_bytes(10).await;
        assert_eq!(ping[..2], [0x89, 8]);
        // The pong comes in pieces, and a message follows in one piece with its end.
        let pong = [&[0x8a, 0x88, 0, 0, 0, 0][..], &ping[2..]].concat();
        gateway.write(&pong[..9]).await;
        gateway.write([&pong[9..], &[0x81, 0x81, 0, 0, 0, 0, b'a'][..]].concat()).await;
        assert_eq!(inside.exactly_bytes(7).await, [0x81, 0x81, 0, 0, 0, 0, b'a']);
    }
    // A pong to a ping of the workspace's passes while one of the forwarder's is owed.
    gateway.exactly_bytes(10).await;
    gateway.write([0x8a, 0x81, 0, 0, 0, 0, b'b']).await;
    assert_eq!(inside.exactly_bytes(7).await, [0x8a, 0x81, 0, 0, 0, 0, b'b']);
    // What is no WebSocket, and one within a frame or after its close, gets nothing inserted.
    let (mut other, mut other_inside) = agreed(&served, "echo/1").await;
    let (mut within, mut within_inside) = agreed(&served, "websocket").await;
    let (mut closed, mut closed_inside) = agreed(&served, "websocket").await;
    within_inside.write([0x81, 2, b'h']).await;
    closed_inside.write([0x88, 0]).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    other_inside.write("x").await;
    within_inside.write("i").await;
    closed_inside.finish_writing().await;
    assert_eq!(other.exactly_bytes(1).await, b"x");
    assert_eq!(within.exactly_bytes(4).await, [0x81, 2, b'h', b'i']);
    assert_eq!(within.exactly_bytes(2).await, [0x89, 8]);
    assert_eq!(closed.rest_bytes().await, [0x88, 0]);
}

/// Not all clients connect again in the same moment.
#[tokio::test]
async fn a_drain_closes_tunnels_one_after_the_other() {
    let drain = std::time::Duration::from_secs(1);
    let served = Served::with(crate::forwarder::ForwarderLimits::default(), drain).await;
    let mut tunnels = Vec::new();
    for _ in 0..20 {
        tunnels.push(agreed(&served, "websocket").await);
    }
    let began = std::time::Instant::now();
    served.stop.cancel();
    let closings = tunnels.into_iter().map(|(mut gateway, inside)| async move {
        assert_eq!(gateway.exactly_bytes(4).await, [0x88, 2, 0x03, 0xe9]);
        let closed = began.elapsed();
        drop(inside);
        closed
    });
    let mut times = futures_util::future::join_all(closings).await;
    times.sort();
    let (first, last) = (times[0], times[times.len() - 1]);
    assert!(first >= drain / 2, "{first:?}");
    // Of 20 random times, not all are within a twentieth: once in some 10^24 runs.
    assert!(last - first > drain / 40, "{times:?}");
}
