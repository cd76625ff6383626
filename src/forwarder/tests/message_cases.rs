//! HTTP/1.1 byte for byte: what goes in on one side, and what comes out on the
//! other, a case a line.

use std::collections::BTreeMap;

use super::harness::*;

/// What the stamp's line stands for in a case.
const STAMP: &str = "@";

/// What a request becomes.
enum Becomes {
    /// These bytes at the workspace.
    Passed(&'static str),
    /// A refusal with this status and code, and nothing at any workspace.
    Refused(u16, &'static str),
}

use Becomes::{Passed, Refused};

const MALFORMED: Becomes = Refused(400, "request-malformed");

/// Requests as the gateway sends them.
const REQUESTS: &[(&str, &str, Becomes)] = &[
    (
        "names and values stay as they are",
        "GET / HTTP/1.1\r\nhOsT:h\r\n@X-A:  b\t c \r\nX-Empty:\r\n\r\n",
        Passed("GET / HTTP/1.1\r\nhOsT:h\r\nX-A:  b\t c \r\nX-Empty:\r\n\r\n"),
    ),
    (
        "a header twice stays twice, in order",
        "GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\n@B: 2\r\nA: 3\r\n\r\n",
        Passed("GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2\r\nA: 3\r\n\r\n"),
    ),
    (
        "a body of a length",
        "POST / HTTP/1.1\r\nHost: h\r\n@Content-Length: 5\r\n\r\nhello",
        Passed("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"),
    ),
    (
        "a body with a GET",
        "GET / HTTP/1.1\r\nHost: h\r\n@Content-Length: 2\r\n\r\nhi",
        Passed("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi"),
    ),
    (
        "chunks, without their extensions and trailers",
        "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: chunked\r\n\r\n003;a=b\r\nabc\r\n0;c\r\nX-Admin: 1\r\n\r\n",
        Passed("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    ),
    ("HTTP/1.0", "GET /a HTTP/1.0\r\nHost: h\r\n@\r\n", Passed("GET /a HTTP/1.1\r\nHost: h\r\n\r\n")),
    (
        "hop-by-hop headers go",
        "GET / HTTP/1.1\r\nHost: h\r\n@Connection: keep-alive, X-Hop\r\nKeep-Alive: 1\r\nX-Hop: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\n\r\n",
        Passed("GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    ),
    (
        "an upgrade",
        "GET / HTTP/1.1\r\nHost: h\r\n@Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: a, b\r\n\r\n",
        Passed(
            "GET / HTTP/1.1\r\nHost: h\r\nSec-WebSocket-Protocol: a, b\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
    ),
    (
        "two upgrades are none",
        "GET / HTTP/1.1\r\nHost: h\r\n@Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n",
        Passed("GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    ),
    (
        "expect",
        "POST / HTTP/1.1\r\nHost: h\r\n@Expect: 100-continue\r\nContent-Length: 0\r\n\r\n",
        Passed("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"),
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\r\nHost: h\r\n@Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        MALFORMED,
    ),
    (
        "a length and chunked",
        "POST / HTTP/1.1\r\nHost: h\r\n@Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: h\r\n@Content-Length: 5, 5\r\n\r\nhello", MALFORMED),
    ("a length with a sign", "POST / HTTP/1.1\r\nHost: h\r\n@Content-Length: +5\r\n\r\nhello", MALFORMED),
    (
        "gzip, chunked",
        "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    ("xchunked", "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", MALFORMED),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    (
        "chunked in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: h\r\n@Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        MALFORMED,
    ),
    (
        "a vertical tab in the coding",
        "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: \x0bchunked\r\n\r\n",
        MALFORMED,
    ),
    (
        "a chunk without its end",
        "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n",
        MALFORMED,
    ),
    (
        "a chunk's size with a sign",
        "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        MALFORMED,
    ),
    (
        "a chunk that ends with LF",
        "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: chunked\r\n\r\n1\nx\r\n",
        MALFORMED,
    ),
    (
        "an extension with LF",
        "POST / HTTP/1.1\r\nHost: h\r\n@Transfer-Encoding: chunked\r\n\r\n1;a\nx\r\n",
        MALFORMED,
    ),
    ("a folded header", "GET / HTTP/1.1\r\nHost: h\r\n@X-A: b\r\n c\r\n\r\n", MALFORMED),
    ("a folded first header", "GET / HTTP/1.1\r\n Host: h\r\n@\r\n", MALFORMED),
    ("a bare CR in a value", "GET / HTTP/1.1\r\nHost: h\r\n@X-A: b\rX-B: c\r\n\r\n", MALFORMED),
    ("a bare LF between headers", "GET / HTTP/1.1\r\nHost: h\r\n@X-A: b\nX-B: c\r\n\r\n", MALFORMED),
    ("a bare LF at the end", "GET / HTTP/1.1\r\nHost: h\r\n@\n", MALFORMED),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: h\r\n@X-A: \0\r\n\r\n", MALFORMED),
    ("NUL in the target", "GET /\0 HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a space before a colon", "GET / HTTP/1.1\r\nHost: h\r\n@Content-Length : 5\r\n\r\nhello", MALFORMED),
    ("a tab before a colon", "GET / HTTP/1.1\r\nHost: h\r\n@Content-Length\t: 5\r\n\r\nhello", MALFORMED),
    ("no colon", "GET / HTTP/1.1\r\nHost: h\r\n@X-A\r\n\r\n", MALFORMED),
    ("no name", "GET / HTTP/1.1\r\nHost: h\r\n@: a\r\n\r\n", MALFORMED),
    ("no host", "GET / HTTP/1.1\r\n@\r\n", MALFORMED),
    ("two hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n@\r\n", MALFORMED),
    ("two hosts in HTTP/1.0", "GET / HTTP/1.0\r\nHost: h\r\nHost: i\r\n@\r\n", MALFORMED),
    ("an empty host", "GET / HTTP/1.1\r\nHost: \r\n@\r\n", MALFORMED),
    ("a host that is two", "GET / HTTP/1.1\r\nHost: h, i\r\n@\r\n", MALFORMED),
    ("a host with a user", "GET / HTTP/1.1\r\nHost: a@h\r\n@\r\n", MALFORMED),
    ("a host with a path", "GET / HTTP/1.1\r\nHost: h/a\r\n@\r\n", MALFORMED),
    ("a URL of another host", "GET http://other/a HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a URL of another port", "GET http://h:81/a HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a URL with a user", "GET http://h@other/ HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a URL without a path", "GET http://h?a HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a URL of another scheme", "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a target that is no path", "GET a HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("* with a GET", "GET * HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a tab in the target", "GET /a\tHTTP/1.1 HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a fragment", "GET /#a HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a space in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("a tab for a space", "GET\t/ HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("no version", "GET /\r\nHost: h\r\n@\r\n", MALFORMED),
    ("HTTP/0.9", "GET /\r\n\r\n", MALFORMED),
    ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", MALFORMED),
    ("HTTP/1.10", "GET / HTTP/1.10\r\nHost: h\r\n@\r\n", MALFORMED),
    ("an empty line first", "\r\nGET / HTTP/1.1\r\nHost: h\r\n@\r\n", MALFORMED),
    ("TLS", "\x16\x03\x01\x02\0\x01\0\x01\n", MALFORMED),
    ("no stamp", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(403, "stamp-refused")),
    (
        "the stamp in a trailer",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n@\r\n",
        Refused(403, "stamp-refused"),
    ),
];

#[tokio::test]
async fn a_request_comes_out_as_it_should() {
    let served = Served::new().await;
    let mut refused = BTreeMap::<_, u64>::new();
    for (case, request, expected) in REQUESTS {
        let workspace = Workspace::new().await;
        let mut gateway = served.connect().await;
        gateway.write(request.replace(STAMP, &served.stamp(&workspace))).await;
        match expected {
            Passed(bytes) => {
                let mut inside = workspace.accept().await;
                assert_eq!(inside.exactly(bytes.len()).await, *bytes, "{case}");
                inside.answer("done").await;
                assert_eq!(gateway.response().await.1, "done", "{case}");
                let mut more = [0; 1];
                assert!(inside.stream.try_read(&mut more).is_err() && inside.read.is_empty(), "{case}");
            }
            Refused(status, code) => {
                let response = gateway.response().await;
                assert!(response.0.starts_with(&format!("HTTP/1.1 {status} ")), "{case}: {}", response.0);
                assert_refused(&response, *status, code);
                assert!(workspace.is_unused().await, "{case}");
                *refused.entry(*code).or_default() += 1;
                assert_eq!(served.forwarder.counters.refused(), refused, "{case}");
            }
        }
    }
}

/// Answers as a workspace sends them before it closes, to a GET, and what the gateway
/// gets, up to its end where the connection ends.
const ANSWERS: &[(&str, &str, &str)] = &[
    (
        "names and values stay as they are",
        "HTTP/1.1 200 Fine\r\nsEt-Cookie:a\r\nSet-Cookie:  b \r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 Fine\r\nsEt-Cookie:a\r\nSet-Cookie:  b \r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "chunks, without their extensions",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n02;a=b\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    (
        "trailers, but those that would say what heads say",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\nContent-Length: 5\r\nX-Accel-Redirect: /\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n",
    ),
    (
        "a body up to the end",
        "HTTP/1.1 200 OK\r\nA: b\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "HTTP/1.0",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "commands to nginx go, but for the one about this response alone",
        "HTTP/1.1 200 OK\r\nX-Accel-Redirect: /a\r\nx-accel-buffering: no\r\nX-Accel-Expires: 9\r\n\
         X-ACCEL-LIMIT-RATE: 1\r\nX-Accel-Charset: utf-7\r\nX-Accel-Buffering-X: 1\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-accel-buffering: no\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "headers that hold for the whole origin go",
        "HTTP/1.1 200 OK\r\nClear-Site-Data: \"*\"\r\nNEL: {}\r\nReport-To: {}\r\nREPORTING-ENDPOINTS: a\r\n\
         Alt-Svc: h3\r\nStrict-Transport-Security: max-age=0\r\nService-Worker-Allowed: /\r\nX-Own: 1\r\n\
         Content-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Own: 1\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "cookies stay at their host",
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Domain=example.com; Path=/\r\nSet-Cookie: c=d\r\n\
         Set-Cookie: __Host-kube-coders-user=x; Secure\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nSet-Cookie: c=d\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        "a length that Connection names stays",
        "HTTP/1.1 200 OK\r\nConnection: content-length, x-hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "no interim responses without a request for them",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ),
    (
        "nothing behind a body of a length",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "nothing behind a 304",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nbad",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n",
    ),
];

/// Answers that are none.
const NO_ANSWERS: &[(&str, &str)] = &[
    ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
    (
        "a length and chunked",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a length that is none", "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok"),
    ("an odd coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok"),
    ("a folded header", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n"),
    ("a bare LF", "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok"),
    ("a bare CR", "HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n"),
    ("NUL", "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n"),
    ("a space before a colon", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"),
    ("no status", "HTTP/1.1 OK\r\n\r\n"),
    ("HTTP/2", "HTTP/2 200 OK\r\n\r\n"),
    ("no HTTP", "SSH-2.0-OpenSSH_9.9\r\n\r\n"),
    ("an upgrade that the request did not ask for", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n"),
    ("half a head", "HTTP/1.1 200 OK\r\nA: b\r\n"),
    ("nothing", ""),
];

async fn answered(served: &Served, answer: &str) -> (Peer, Workspace) {
    let workspace = Workspace::new().await;
    let mut gateway = served.connect().await;
    gateway.write(served.get("/", &workspace)).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write(answer).await;
    (gateway, workspace)
}

#[tokio::test]
async fn an_answer_comes_out_as_it_should() {
    let served = Served::new().await;
    for (case, answer, expected) in ANSWERS {
        let (mut gateway, _workspace) = answered(&served, answer).await;
        assert_eq!(gateway.exactly(expected.len()).await, *expected, "{case}");
        // The next answer is the next request's.
        let next = Workspace::new().await;
        gateway.write(served.get("/next", &next)).await;
        let mut inside = next.accept().await;
        inside.head().await;
        inside.answer("next").await;
        assert!(gateway.head().await.starts_with("HTTP/1.1 200 OK\r\n"), "{case}");
        assert_eq!(gateway.exactly(4).await, "next", "{case}");
    }
}

#[tokio::test]
async fn an_invalid_answer_is_a_failure() {
    let served = Served::new().await;
    for (case, answer) in NO_ANSWERS {
        let (mut gateway, _workspace) = answered(&served, answer).await;
        let response = gateway.response().await;
        assert!(response.0.starts_with("HTTP/1.1 502 "), "{case}: {}", response.0);
        assert_refused(&response, 502, "workspace-failed");
    }
}

#[tokio::test]
async fn endless_interim_responses_are_a_failure() {
    let served = Served::new().await;
    for (many, is_answered) in [(16, true), (17, false)] {
        let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(many);
        let answer = interim + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let (mut gateway, _workspace) = answered(&served, &answer).await;
        let response = gateway.response().await;
        if is_answered {
            assert_eq!(response.1, "ok");
        } else {
            assert_refused(&response, 502, "workspace-failed");
        }
    }
}

/// Bodies that are none, behind a head that has gone out: the gateway must see that they
/// have no end.
#[tokio::test]
async fn a_malformed_chunk_of_an_answer_ends_nothing() {
    let served = Served::new().await;
    for chunks in
        ["-1\r\n", "xyz\r\n", "2\r\nokX\r\n0\r\n\r\n", "2\nok\r\n0\r\n\r\n", "0\r\nno colon\r\n\r\n"]
    {
        for is_early in [true, false] {
            let workspace = Workspace::new().await;
            let mut gateway = served.connect().await;
            gateway.write(served.get("/", &workspace)).await;
            let mut inside = workspace.accept().await;
            inside.head().await;
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            if is_early {
                inside.write(format!("{head}{chunks}")).await;
            } else {
                inside.write(head).await;
                gateway.head().await;
                inside.write(chunks).await;
            }
            let rest = gateway.rest().await;
            assert!(!rest.contains("0\r\n\r\n"), "{chunks:?}: {rest}");
        }
    }
    assert!(served.forwarder.counters.refused()["response-broken-off"] >= 5);
}

#[tokio::test]
async fn a_client_that_wants_no_more_gets_no_more() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    let stamp = served.stamp(&workspace);
    gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{stamp}\r\n")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.answer("last").await;
    let (head, body) = gateway.response().await;
    assert!(head.contains("Connection: close\r\n") && body == "last", "{head}");
    assert_eq!(gateway.rest().await, "");
    // The workspace's connection is none of its business.
    let mut next = served.connect().await;
    next.write(served.get("/next", &workspace)).await;
    assert!(inside.head().await.starts_with("GET /next "));
}

/// Requests that come in one piece are answered one after the other, each by its own
/// workspace.
#[tokio::test]
async fn requests_behind_each_other_are_answered_in_order() {
    let (served, alice, bob) = (Served::new().await, Workspace::new().await, Workspace::new().await);
    let mut gateway = served.connect().await;
    gateway.write(served.get("/1", &alice) + &served.get("/2", &bob) + &served.get("/3", &alice)).await;
    for (workspace, target) in [(&alice, "/1"), (&bob, "/2"), (&alice, "/3")] {
        let mut inside = workspace.accept().await;
        assert!(inside.head().await.starts_with(&format!("GET {target} ")));
        inside.answer(target).await;
        drop(inside);
        assert_eq!(gateway.response().await.1, target);
    }
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte_but_not_for_ever() {
    let limits = crate::forwarder::ForwarderLimits {
        head: std::time::Duration::from_millis(300),
        ..crate::forwarder::ForwarderLimits::default()
    };
    let (served, workspace) = (Served::with(limits, DRAIN).await, Workspace::new().await);
    let mut gateway = served.connect().await;
    for byte in served.get("/", &workspace).bytes() {
        gateway.write([byte]).await;
    }
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.answer("whole").await;
    assert_eq!(gateway.response().await.1, "whole");
    gateway.write("GET / HTTP/1.1\r\nHost: h\r\n").await;
    assert_refused(&gateway.response().await, 408, "request-late");
    assert_eq!(gateway.rest().await, "");
    assert_eq!(served.forwarder.counters.refused(), [("request-late", 1)].into());
}

#[tokio::test]
async fn a_connection_header_names_only_so_many() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    for (names, status) in [(64, 200), (65, 400)] {
        let mut gateway = served.connect().await;
        let (stamp, connection) = (served.stamp(&workspace), "a,".repeat(names));
        gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: {connection}\r\n{stamp}\r\n")).await;
        if status == 200 {
            let mut inside = workspace.accept().await;
            inside.head().await;
            inside
                .write(format!("HTTP/1.1 200 OK\r\nConnection: {connection}b\r\nContent-Length: 0\r\n\r\n"))
                .await;
            assert_refused(&gateway.response().await, 502, "workspace-failed");
        } else {
            assert_refused(&gateway.response().await, 400, "request-malformed");
        }
    }
}
