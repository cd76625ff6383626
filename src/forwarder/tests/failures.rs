//! Workspaces that fail.

use super::super::http::head::{MAX_FIELDS, MAX_HEAD};
use super::super::workspace::connection::WorkspaceConnection;
use super::super::workspace::pool::Destination;
use super::harness::*;
use crate::forwarder::ForwarderLimits;
use apisix_plugin_runner::Upstream;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const UNSAID: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nunsaid";

/// More than the kernel keeps for two connections.
const MOST_KEPT: usize = 32 << 20;

#[tokio::test]
async fn a_workspace_that_took_the_request_and_is_silent_is_late() {
    let limits = ForwarderLimits { read: Duration::from_millis(50), ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    assert_refused(&gateway.response().await, 504, "workspace-timeout");
    // Its answer would come too late.
    inside.head().await;
    assert_eq!(inside.rest().await, "");
}

#[tokio::test]
async fn a_workspace_is_not_late_while_the_request_is_still_coming() {
    let wait = Duration::from_millis(500);
    let limits = ForwarderLimits { read: wait, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n{stamp}\r\n")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    let started = std::time::Instant::now();
    while started.elapsed() < 2 * wait {
        gateway.write("1\r\nx\r\n").await;
        assert_eq!(inside.until("x\r\n").await, "1\r\nx\r\n");
    }
    gateway.write("0\r\n\r\n").await;
    inside.until("0\r\n\r\n").await;
    inside.answer("done").await;
    assert_eq!(gateway.response().await.1, "done");
}

#[tokio::test]
async fn a_workspace_that_breaks_off_has_failed_and_is_not_asked_again() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for (turn, answer) in ["HTTP/1.1 200 O", "nonsense\r\n\r\n"].iter().enumerate() {
        // Also on a connection that was used before.
        gateway.write(served.get(&format!("/{turn}/first"), &workspace)).await;
        let mut inside = workspace.accept().await;
        assert!(inside.head().await.starts_with(&format!("GET /{turn}/first ")));
        inside.answer("").await;
        gateway.response().await;
        gateway.write(served.get(&format!("/{turn}/second"), &workspace)).await;
        inside.head().await;
        inside.write(answer).await;
        drop(inside);
        assert_refused(&gateway.response().await, 502, "workspace-failed");
        assert!(workspace.is_untouched().await);
    }
}

/// How the workspace ends a connection on which a request has just arrived.
#[tokio::test]
async fn a_request_that_arrives_as_a_reused_connection_ends_is_sent_once_more() {
    for (request, is_repeated) in [
        ("GET /x HTTP/1.1\r\n", true),
        ("HEAD /x HTTP/1.1\r\n", true),
        ("OPTIONS /x HTTP/1.1\r\n", true),
        ("DELETE /x HTTP/1.1\r\nContent-Length: 0\r\n", true),
        ("PUT /x HTTP/1.1\r\nContent-Length: 0\r\n", true),
        ("PUT /x HTTP/1.1\r\nContent-Length: 1\r\n", false),
        ("GET /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", false),
        ("POST /x HTTP/1.1\r\n", false),
        ("POST /x HTTP/1.1\r\nContent-Length: 0\r\n", false),
        ("PATCH /x HTTP/1.1\r\nContent-Length: 0\r\n", false),
        ("PROPFIND /x HTTP/1.1\r\n", false),
    ] {
        for is_reused in [true, false] {
            let (served, workspace) = (Served::new().await, Workspace::new().await);
            let mut gateway = served.connect().await;
            let mut inside = None;
            if is_reused {
                gateway.write(served.get("/first", &workspace)).await;
                let first = inside.insert(workspace.accept().await);
                first.head().await;
                first.answer("").await;
                gateway.response().await;
            }
            gateway.write(format!("{request}Host: h\r\nX-Own: 1\r\n{}\r\n", served.stamp(&workspace))).await;
            let mut inside = match inside {
                Some(inside) => inside,
                None => workspace.accept().await,
            };
            let head = inside.head().await;
            drop(inside);
            if is_repeated && is_reused {
                let mut again = workspace.accept().await;
                assert_eq!(again.head().await, head, "{request}");
                again.write("HTTP/1.1 204 No Content\r\n\r\n").await;
                assert!(gateway.head().await.starts_with("HTTP/1.1 204 "), "{request}");
            } else {
                assert!(gateway.head().await.starts_with("HTTP/1.1 502 "), "{request}");
            }
            assert!(workspace.is_untouched().await, "{request}");
        }
    }
}

#[tokio::test]
async fn a_request_is_not_sent_a_third_time() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/first", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.answer("").await;
    gateway.response().await;
    gateway.write(served.get("/second", &workspace)).await;
    inside.head().await;
    drop(inside);
    workspace.accept().await.head().await;
    assert_refused(&gateway.response().await, 502, "workspace-failed");
    assert!(workspace.is_untouched().await);
}

#[tokio::test]
async fn a_response_that_can_not_be_passed_on_is_a_failure() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let many = "X: y\r\n".repeat(MAX_FIELDS + 1);
    let long = format!("X: {}\r\n", "y".repeat(MAX_HEAD));
    for lines in ["Transfer-Encoding: gzip, chunked\r\n", &many, &long] {
        gateway.write(served.get("/", &workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.write(format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).await;
        assert_refused(&gateway.response().await, 502, "workspace-failed");
    }
}

#[tokio::test]
async fn a_request_head_has_a_limit() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let many = "X: y\r\n".repeat(MAX_FIELDS - 2);
    let long = format!("X: {}\r\n", "y".repeat(MAX_HEAD));
    for (lines, is_taken) in [(many.clone(), true), (many + "X: y\r\n", false), (long, false)] {
        let mut gateway = served.connect().await;
        let stamp = served.stamp(&workspace);
        gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\n{stamp}{lines}\r\n")).await;
        if is_taken {
            workspace.accept().await.head().await;
        } else {
            assert!(gateway.head().await.starts_with("HTTP/1.1 431 "));
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_completed() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n").await;
    drop(inside);
    gateway.head().await;
    assert!(!gateway.rest().await.contains("0\r\n\r\n"));
}

#[tokio::test]
async fn a_workspace_hears_that_the_gateway_has_gone() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    drop(gateway);
    assert_eq!(inside.rest().await, "");
}

#[tokio::test]
async fn a_workspace_that_neither_reads_nor_answers_holds_no_place() {
    let wait = Duration::from_millis(200);
    let limits = ForwarderLimits { read: wait, send: wait, max_connections: 1, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway
        .write(format!(
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n{}\r\n",
            served.stamp(&workspace)
        ))
        .await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await;
    // The gateway's side of the request is full at some time, and then it goes.
    let filling = async {
        loop {
            if gateway.stream.write_all(&[b'x'; 65_536]).await.is_err() {
                break;
            }
        }
    };
    within(filling).await;
    drop(gateway);
    within(async { while served.first_answer().await != "HTTP/1.1 403" {} }).await;
}

#[tokio::test]
async fn a_plugin_may_choose_how_long_a_workspace_is_waited_for() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let wait = Duration::from_millis(50);
    for (chosen, head_first) in [(wait, false), (wait, true)] {
        let upstream: Upstream = format!("http://{}", workspace.address).parse().unwrap();
        let upstream = upstream.read_timeout(chosen).unwrap();
        let stamp = served.key.make(&upstream, SystemTime::now() + Duration::from_secs(60));
        let mut gateway = served.connect().await;
        gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Kube-Coders-Stamp: {stamp}\r\n\r\n")).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        if head_first {
            inside.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe").await;
            // What has begun can't be taken back, only broken off.
            assert!(gateway.rest().await.ends_with("\r\n\r\nhe"));
        } else {
            let response = gateway.response().await;
            assert_refused(&response, 504, "workspace-timeout");
            // The workspace may be working on it, so nothing may make the browser repeat it.
            assert!(!response.0.to_ascii_lowercase().contains("retry-after"), "{}", response.0);
        }
        assert_eq!(inside.rest().await, "");
    }
}

#[tokio::test]
async fn a_workspace_that_takes_nothing_is_given_up() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let upstream: Upstream = format!("http://{}", workspace.address).parse().unwrap();
    let upstream = upstream.send_timeout(Duration::from_millis(100)).unwrap();
    let stamp = served.key.make(&upstream, SystemTime::now() + Duration::from_secs(60));
    let mut gateway = served.connect().await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\nX-Kube-Coders-Stamp: {stamp}\r\n\r\n"
    );
    gateway.write(head).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    let (mut reads, mut writes) = gateway.stream.into_split();
    let filling = tokio::spawn(async move { while writes.write_all(&[b'x'; 65_536]).await.is_ok() {} });
    let mut answer = Vec::new();
    let reading = async {
        while !answer.ends_with(b"}")
            && tokio::io::AsyncReadExt::read_buf(&mut reads, &mut answer).await.is_ok_and(|n| n > 0)
        {}
    };
    within(reading).await;
    assert!(String::from_utf8(answer).unwrap().contains("workspace-timeout"));
    drop(reads);
    within(filling).await.unwrap();
}

/// A gateway that has sent a whole request and got a whole answer sends the next one:
/// it must not be the one that waits for the first's upload.
#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_the_last() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n{stamp}\r\nabc")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let (head, body) = gateway.response().await;
    assert!(head.contains("Connection: close\r\n") && body == "ok", "{head}");
    // What was under way goes on to its end, and no further.
    gateway.write("defghi").await;
    assert_eq!(inside.exactly(9).await, "abcdefghi");
    gateway.write(served.get("/next", &workspace)).await;
    assert_eq!(gateway.rest().await, "");
    assert!(workspace.is_untouched().await);
}

#[tokio::test]
async fn a_refusal_of_a_long_request_is_the_last() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let stamp = served.stamp(&workspace);
    drop(workspace);
    for (framing, stamp) in [("Content-Length: 3000000", stamp.as_str()), ("Transfer-Encoding: chunked", "")]
    {
        let mut gateway = served.connect().await;
        gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n{stamp}\r\n")).await;
        let (head, _) = gateway.response().await;
        assert!(head.contains("Connection: close\r\n"), "{head}");
    }
}

/// What a workspace says on an idle connection answers no request.
#[tokio::test]
async fn an_idle_connection_that_has_spoken_is_not_used_again() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    for (says, goes) in [(UNSAID, false), (UNSAID, true), ("", true)] {
        let mut gateway = served.connect().await;
        gateway.write(served.get("/first", &workspace)).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        inside.answer("first").await;
        gateway.response().await;
        inside.write(says).await;
        let _stays = (!goes).then_some(inside);
        gateway.write(served.get("/second", &workspace)).await;
        let mut second = workspace.accept().await;
        assert!(second.head().await.starts_with("GET /second "));
        second.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nsecond").await;
        assert_eq!(gateway.response().await.1, "second");
        assert_eq!(gateway.read, b"", "nothing follows the answer");
    }
}

/// A workspace that has taken nothing of a request, but has spoken since, may have acted on
/// it: the request is not sent on another connection.
#[tokio::test]
async fn a_workspace_that_has_spoken_gets_no_second_try() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let upstream: Upstream = format!("http://{}", workspace.address).parse().unwrap();
    // The connection is full, so not a byte of the request goes out on it.
    let mut full = Peer::new(TcpStream::connect(workspace.address).await.unwrap());
    let mut inside = workspace.accept().await;
    fill(&mut full).await;
    let full = WorkspaceConnection::of_tcp(full.stream, workspace.address.ip());
    served.forwarder.pool.put(Destination::of(&upstream), full, PATIENCE);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    let head = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n";
    gateway.write(format!("{head}{stamp}\r\n")).await;
    until_something_is_open(&served).await;
    inside.write("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(gateway.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    // What it has not read makes its end a reset.
    drop(inside);
    assert_refused(&gateway.response().await, 502, "workspace-failed");
    assert!(workspace.is_untouched().await);
}

#[tokio::test]
async fn bytes_that_a_workspace_does_not_take_hold_no_place_for_ever() {
    let send = Duration::from_millis(300);
    let limits = ForwarderLimits { max_connections: 1, send, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    for is_tunnel in [false, true] {
        let mut gateway = served.connect().await;
        let request = if is_tunnel {
            served.upgrade(&workspace)
        } else {
            let stamp = served.stamp(&workspace);
            format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n{stamp}\r\n")
        };
        gateway.write(request).await;
        let mut inside = workspace.accept().await;
        inside.head().await;
        if is_tunnel {
            inside
                .write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n")
                .await;
            gateway.head().await;
        }
        // Until no more bytes are taken: the workspace reads nothing.
        let taken = fill(&mut gateway).await;
        assert!(taken < MOST_KEPT, "{taken} bytes are kept somewhere");
        drop(gateway);
        // Its end stands behind what waits, and may not even have come.
        until_nothing_is_open(&served).await;
        drop(inside);
    }
}

/// The same by the time that a plugin chose, for the request and for its tunnel.
#[tokio::test]
async fn a_chosen_time_holds_in_tunnels_too() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let upstream: Upstream = format!("http://{}", workspace.address).parse().unwrap();
    let upstream = upstream.for_subject("alice").unwrap().send_timeout(Duration::from_millis(300)).unwrap();
    let stamp = served.key.make(&upstream, SystemTime::now() + Duration::from_secs(60));
    let mut gateway = served.connect().await;
    let head = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n";
    gateway.write(format!("{head}X-Kube-Coders-Stamp: {stamp}\r\n\r\n")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n").await;
    gateway.head().await;
    fill_until_nothing_is_open(&served, &mut gateway).await;
}

/// A client that reads nothing more of an answer.
#[tokio::test]
async fn bytes_that_the_gateway_does_not_take_hold_no_place_for_ever() {
    let send = Duration::from_millis(300);
    let (served, workspace) = (
        Served::with(ForwarderLimits { send, ..ForwarderLimits::default() }, DRAIN).await,
        Workspace::new().await,
    );
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
    gateway.head().await;
    let taken = fill_until_nothing_is_open(&served, &mut inside).await;
    assert!(taken < MOST_KEPT, "{taken} bytes are kept somewhere");
    assert_eq!(served.forwarder.counters.refused(), [("response-broken-off", 1)].into());
    drop(gateway);
}

/// A response may take any time in all while its parts come in time.
#[tokio::test]
async fn a_slow_answer_is_not_late_while_it_is_coming() {
    let wait = PATIENCE / 2;
    let limits = ForwarderLimits { read: wait, ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n").await;
    gateway.head().await;
    for _ in 0..20 {
        pass(wait / 2).await;
        inside.write("x").await;
        assert_eq!(gateway.exactly(1).await, "x");
    }
}

#[tokio::test]
async fn a_client_that_stops_in_its_body_is_late_and_not_the_workspace() {
    let limits = ForwarderLimits { read: Duration::from_millis(100), ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n{stamp}\r\nabc")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    assert_refused(&gateway.response().await, 408, "request-late");
    assert_eq!(inside.rest().await, "abc");
}

/// Who was told no while it waited for a 100 may leave the body out: what comes next
/// must not be taken for it.
#[tokio::test]
async fn a_refusal_in_place_of_a_100_is_the_last() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let stamp = served.stamp(&workspace);
    drop(workspace);
    for (stamp, status) in [(stamp.as_str(), 503), ("", 403)] {
        let mut gateway = served.connect().await;
        let head = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 30\r\n";
        gateway.write(format!("{head}{stamp}\r\n")).await;
        let (head, _) = gateway.response().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains("Connection: close\r\n"), "{head}");
    }
}

#[tokio::test]
async fn a_head_that_drips_from_a_workspace_has_an_end() {
    let limits = ForwarderLimits { head: Duration::from_millis(300), ..ForwarderLimits::default() };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    let dripping = async {
        loop {
            if inside.stream.write_all(b"H").await.is_err() {
                break;
            }
            // A drip is bytes at a pace, and the pace is what the limit is about.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (response, ()) = within(async { tokio::join!(gateway.response(), dripping) }).await;
    assert_refused(&response, 502, "workspace-failed");
}
