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
async fn an_upgrade_that_nobody_asked_for_is_a_failure() {
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
