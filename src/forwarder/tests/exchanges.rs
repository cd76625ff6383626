//! Requests and answers as they come out on the other side.

use super::harness::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn the_connection_header_removes_only_what_is_the_clients() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway
        .write(format!(
            "POST /a HTTP/1.1\r\nHost: code.example\r\nConnection: x-forwarded-user, Host, cookie, content-length\r\n\
             Connection: x-hop, x-kube-coders-stamp\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nUpgrade: websocket\r\n\
             X-Forwarded-User: alice\r\nX-Forwarded-For: 192.0.2.1\r\nCookie: a=b\r\nContent-Length: 3\r\n\
             Accept: a\r\nAccept: b\r\nX-Latin: \u{e9}\r\n{stamp}\r\nabc"
        ))
        .await;
    let mut inside = workspace.accept().await;
    let head = inside.head().await;
    assert_eq!(inside.exactly(3).await, "abc");
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "POST /a HTTP/1.1");
    lines.sort_unstable();
    let expected = [
        "Accept: a",
        "Accept: b",
        "Content-Length: 3",
        "Cookie: a=b",
        "Host: code.example",
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-User: alice",
        // Two bytes of UTF-8, as they were sent.
        "X-Latin: \u{c3}\u{a9}",
    ];
    assert_eq!(lines, expected);

    inside
        .write(
            "HTTP/1.1 299 Very Own Words\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nDate: today\r\nContent-Length: 2\r\n\r\nok",
        )
        .await;
    let (head, body) = gateway.response().await;
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "HTTP/1.1 299 Very Own Words");
    lines.sort_unstable();
    assert_eq!(lines, ["Content-Length: 2", "Date: today", "Set-Cookie: a=b", "Set-Cookie: c=d"]);
    assert_eq!(body, "ok");
}

#[tokio::test]
async fn method_and_target_arrive_byte_for_byte() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let mut inside = None;
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/?"),
        ("GET", "/a?b=%2F&&c=d+e&f=?/?"),
        ("GET", "/%2F%2f/%FF%00//../.;a=b/"),
        ("GET", "//other.example/a"),
        ("GET", "/http://other.example/"),
        ("GET", "/a:b@c"),
        ("GET", "/{a}|^\\[]~\"'?{b}|^\\[]`'"),
        ("GET", "/김재훈?q=김"),
        ("OPTIONS", "*"),
        ("DELETE", "/x"),
        ("PROPFIND", "/x"),
        ("M-SEARCH", "/x"),
        ("get", "/x"),
        ("GET", "/<a>`\"?<b>`"),
    ] {
        let stamp = served.stamp(&workspace);
        gateway.write(format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{stamp}\r\n")).await;
        if inside.is_none() {
            inside = Some(workspace.accept().await);
        }
        let inside = inside.as_mut().unwrap();
        let line = inside.until("\r\n").await;
        let bytes: String = target.bytes().map(char::from).collect();
        assert_eq!(line, format!("{method} {bytes} HTTP/1.1\r\n"));
        inside.head().await;
        inside.answer("").await;
        assert!(gateway.response().await.0.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    // Bytes that are no text pass as well.
    let (stamp, mut inside) = (served.stamp(&workspace), inside.unwrap());
    let rest = format!(" HTTP/1.1\r\nHost: h\r\n{stamp}\r\n");
    gateway.write([b"GET /\xff?\xfe", rest.as_bytes()].concat()).await;
    assert_eq!(inside.until("\r\n").await, "GET /\u{ff}?\u{fe} HTTP/1.1\r\n");
    inside.head().await;
    inside.answer("").await;
    gateway.response().await;
    // What is for a proxy becomes what is for a server.
    for (target, expected) in [("http://H/a?b", "/a?b"), ("HTTPS://h", "/"), ("http://h/", "/")] {
        let stamp = served.stamp(&workspace);
        gateway.write(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{stamp}\r\n")).await;
        let head = inside.head().await;
        assert_eq!(head, format!("GET {expected} HTTP/1.1\r\nHost: h\r\n\r\n"));
        inside.answer("").await;
        gateway.response().await;
    }
}

#[tokio::test]
async fn responses_without_a_body_stay_as_they_are() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let mut inside = None;
    for (method, answer, expected) in [
        ("HEAD", "200 OK\r\nContent-Length: 5", Some("Content-Length: 5\r\n")),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", None),
        ("GET", "204 No Content\r\nETag: x", Some("ETag: x\r\n")),
        ("GET", "304 Not Modified\r\nETag: x", Some("ETag: x\r\n")),
        ("GET", "304 Not Modified\r\nETag: x\r\nContent-Length: 5", Some("ETag: x\r\n")),
        ("GET", "103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\nETag: x", Some("ETag: x\r\n")),
    ] {
        let stamp = served.stamp(&workspace);
        gateway.write(format!("{method} / HTTP/1.1\r\nHost: h\r\n{stamp}\r\n")).await;
        if inside.is_none() {
            inside = Some(workspace.accept().await);
        }
        let inside = inside.as_mut().unwrap();
        inside.head().await;
        inside.write(format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        let head = gateway.head().await;
        let status = answer.rsplit("HTTP/1.1 ").next().unwrap().split("\r\n").next().unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
        assert!(head.contains(expected.unwrap_or_default()), "{head}");
        assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    }
    // Nothing stands between the responses.
    gateway.write(served.get("/last", &workspace)).await;
    let inside = inside.as_mut().unwrap();
    inside.head().await;
    inside.answer("last").await;
    assert_eq!(gateway.response().await.1, "last");
}

#[tokio::test]
async fn a_body_without_a_length_arrives_with_any_method() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let mut inside = None;
    for method in ["GET", "POST"] {
        let stamp = served.stamp(&workspace);
        let head = format!("{method} / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n{stamp}\r\n");
        gateway.write(head + "3\r\nabc\r\n0\r\nX-Forwarded-User: bob\r\n\r\n").await;
        if inside.is_none() {
            inside = Some(workspace.accept().await);
        }
        let inside = inside.as_mut().unwrap();
        assert!(inside.head().await.contains("Transfer-Encoding: chunked\r\n"));
        assert_eq!(inside.until("0\r\n\r\n").await, "3\r\nabc\r\n0\r\n\r\n");
        inside.answer("").await;
        gateway.response().await;
    }
}

#[tokio::test]
async fn bodies_are_streamed_both_ways() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n{stamp}\r\nabc")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    // Each piece is seen on the other side before the next one is sent.
    assert_eq!(inside.exactly(3).await, "abc");
    inside.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n").await;
    gateway.head().await;
    assert_eq!(gateway.until("\r\nhe\r\n").await, "2\r\nhe\r\n");
    gateway.write("def").await;
    assert_eq!(inside.exactly(3).await, "def");
    inside.write("3\r\nllo\r\n0\r\n\r\n").await;
    assert_eq!(gateway.until("0\r\n\r\n").await, "3\r\nllo\r\n0\r\n\r\n");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_arrives() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n{stamp}\r\nabc")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno").await;
    inside.finish_writing().await;
    let (head, body) = gateway.response().await;
    assert!(head.starts_with("HTTP/1.1 413 Content Too Large\r\n"), "{head}");
    assert_eq!(body, "no");
}

#[tokio::test]
async fn a_gateway_may_speak_http_1_0() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.upgrade(&workspace).replace("HTTP/1.1", "HTTP/1.0")).await;
    let mut inside = workspace.accept().await;
    let head = inside.head().await;
    assert!(head.starts_with("GET /ws HTTP/1.1\r\n") && !head.contains("upgrade"), "{head}");
    inside.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n\r\n").await;
    let answer = gateway.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nhe"), "{answer}");
}

#[tokio::test]
async fn an_expected_continue_is_the_workspaces() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    let head =
        format!("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n{stamp}\r\n");
    gateway.write(head).await;
    let mut inside = workspace.accept().await;
    assert!(inside.head().await.contains("Expect: 100-continue\r\n"));
    // Once is enough, however often it is said.
    inside.write("HTTP/1.1 100 Continue\r\nX-Own: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(gateway.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    gateway.write("abc").await;
    assert_eq!(inside.exactly(3).await, "abc");
    inside.answer("thanks").await;
    assert_eq!(gateway.response().await.1, "thanks");
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    const SIZE: usize = 64 << 20;
    const PIECE: usize = 1 << 16;
    /// Differs from piece to piece, so that a swap would be seen.
    fn piece(number: usize) -> &'static [u8] {
        static BYTES: std::sync::LazyLock<Vec<u8>> =
            std::sync::LazyLock::new(|| (0..=250).cycle().take(PIECE + 251).collect());
        &BYTES[number % 251..][..PIECE]
    }
    async fn send(stream: &mut (impl tokio::io::AsyncWrite + Unpin)) {
        for number in 0..SIZE / PIECE {
            stream.write_all(piece(number)).await.unwrap();
        }
    }
    async fn receive(stream: &mut (impl tokio::io::AsyncRead + Unpin), early: Vec<u8>) {
        let mut stream = early.as_slice().chain(stream);
        let mut read = vec![0; PIECE];
        for number in 0..SIZE / PIECE {
            stream.read_exact(&mut read).await.unwrap();
            assert!(read == piece(number), "piece {number}");
        }
    }
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {SIZE}\r\n{stamp}\r\n")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    gateway.head().await;
    let (mut gateway_reads, mut gateway_writes) = gateway.stream.split();
    let (mut inside_reads, mut inside_writes) = inside.stream.split();
    within(async {
        tokio::join!(
            send(&mut gateway_writes),
            receive(&mut inside_reads, inside.read),
            send(&mut inside_writes),
            receive(&mut gateway_reads, gateway.read),
        )
    })
    .await;
}
