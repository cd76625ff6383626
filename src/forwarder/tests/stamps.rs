//! Stamps and refusals: what is turned away before anything is connected.

use super::harness::*;
use std::time::SystemTime;

#[tokio::test]
async fn without_a_good_stamp_nothing_is_connected() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let good = served.stamp(&workspace);
    let expired = served.stamp_until(workspace.address, SystemTime::now());
    let foreign = Served::new().await.stamp(&workspace);
    let forged = good.replace(": A", ": B");
    assert_ne!(good, forged);
    for stamp in [
        String::new(),
        format!("{good}{good}"),
        format!("{good}x-kube-coders-stamp: \r\n"),
        "x-kube-coders-stamp: \r\n".to_owned(),
        "x-kube-coders-stamp: \u{fc}\r\n".to_owned(),
        format!("x-kube-coders-stamp: {expired}\r\n"),
        foreign,
        forged,
        good.replace("Stamp", "Stamps"),
        good.replace("\r\n", ",\r\n"),
    ] {
        gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: id-1\r\n{stamp}\r\n")).await;
        let response = gateway.response().await;
        assert_refused(&response, 403, "stamp-refused");
        assert!(response.1.contains("\"request_id\":\"id-1\""), "{}", response.1);
        assert!(!response.1.contains("127.0.0.1") && !response.1.contains("alice"), "{}", response.1);
    }
    // The first connection that the workspace sees is that of the good one.
    gateway.write(served.get("/good", &workspace)).await;
    assert!(workspace.accept().await.head().await.starts_with("GET /good "));
    assert!(workspace.is_untouched().await);
}

/// Neither a body without a stamp nor one for a workspace that is not there
/// resets the connection on which its refusal is read.
#[tokio::test]
async fn a_refusal_leaves_the_connection_usable() {
    const SIZE: usize = 512 << 10;
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    drop(workspace);
    for (stamp, status) in [("", 403), (stamp.as_str(), 503)] {
        gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {SIZE}\r\n{stamp}\r\n")).await;
        gateway.write(vec![b'x'; SIZE]).await;
        let (head, _) = gateway.response().await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} "))
                && !head.to_ascii_lowercase().contains("connection: close"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_navigation_is_refused_with_a_page() {
    let served = Served::new().await;
    let mut gateway = served.connect().await;
    gateway.write("GET / HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\nAccept-Language: ko\r\n\r\n").await;
    let (head, body) = gateway.response().await;
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    assert!(head.contains("content-type: text/html; charset=utf-8\r\n"), "{head}");
    assert!(body.contains("<html lang=\"ko\">"), "{body}");
}

#[tokio::test]
async fn a_request_id_that_is_not_sane_is_replaced() {
    let served = Served::new().await;
    let mut gateway = served.connect().await;
    let long = "x".repeat(129);
    for id in ["", "a b", "\u{fc}", &long] {
        gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: {id}\r\n\r\n")).await;
        let problem: serde_json::Value = serde_json::from_str(&gateway.response().await.1).unwrap();
        let id = problem["request_id"].as_str().unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
}

#[tokio::test]
async fn connect_is_not_allowed() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n{stamp}\r\n")).await;
    assert!(gateway.head().await.starts_with("HTTP/1.1 405 "));
    assert!(workspace.is_untouched().await);
}
