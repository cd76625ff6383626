//! The last good answer, while no name server has a better one.

use hickory_resolver::proto::op::ResponseCode;

use super::server::{Says, Server};
use super::*;

/// A server whose name `a.test` was asked for, for a minute.
async fn known() -> (Server, Resolver) {
    known_for(Lifetimes::default().stale).await
}

/// As `known`, with addresses that are used for so much longer while DNS is silent.
async fn known_for(stale: Duration) -> (Server, Resolver) {
    let server = Server::start().await;
    server.set("a.test", &["127.0.0.1"]);
    let lifetimes = Lifetimes { stale, ..Lifetimes::default() };
    let servers = NameServers::Listed(vec![server.address()]);
    let search = crate::resolver::SearchDomains::Listed(Vec::new());
    let resolver =
        Resolver::with_lifetimes(&servers, &search, crate::resolver::AddressPolicy::any(), lifetimes)
            .unwrap();
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
    (server, resolver)
}

#[tokio::test]
async fn a_name_in_use_is_refreshed_before_it_expires_and_no_caller_waits() {
    let (server, resolver) = known().await;
    server.set("a.test", &["127.0.0.2"]);
    pass(50 * SECOND).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]));
    resolver.lookups.ended().await;
    assert_eq!(server.questions(), 4);
    pass(20 * SECOND).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.2"]));
}

#[tokio::test]
async fn an_unused_name_is_not_refreshed() {
    let (server, _resolver) = known().await;
    pass(3600 * SECOND).await;
    assert_eq!(server.questions(), 2);
}

#[tokio::test]
async fn while_dns_is_silent_a_name_in_use_costs_no_wait() {
    let (server, resolver) = known_for(3600 * SECOND).await;
    server.say(Says::Nothing);
    pass(50 * SECOND).await;
    for minute in 0..60 {
        assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]), "minute {minute}");
        let asked = server.questions();
        if minute % 20 == 0 {
            // The parallel question for the other kind of address has no answer.
            server.until_asked(asked.max(4)).await;
            pass(2 * SECOND).await;
            resolver.lookups.ended().await;
        }
        pass(60 * SECOND).await;
    }
    pass(60 * SECOND).await;
    let resolver = Arc::new(resolver);
    let asking = Arc::clone(&resolver);
    let answer = tokio::spawn(async move { ask(&asking, "a.test").await });
    let asked = server.questions();
    server.until_asked(asked + 1).await;
    pass(2 * SECOND).await;
    assert_eq!(answer.await.unwrap(), Err(ResolveError::Unavailable));
}

#[tokio::test]
async fn a_name_that_was_idle_is_answered_while_dns_is_silent() {
    let (server, resolver) = known_for(3600 * SECOND).await;
    server.say(Says::Nothing);
    pass(30 * 60 * SECOND).await;
    // The first waits a moment: its address may be another's by now.
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]));
    pass(2 * SECOND).await;
    resolver.lookups.ended().await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]));
}

#[tokio::test]
async fn failing_servers_are_as_silent_ones_and_asked_again_every_few_seconds() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        let (server, resolver) = known().await;
        server.say(Says::Code(code));
        pass(61 * SECOND).await;
        assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]), "{code}");
        resolver.lookups.ended().await;
        let asked = server.questions();
        for _ in 0..1000 {
            assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]), "{code}");
        }
        assert_eq!(server.questions(), asked);
        server.set("a.test", &["127.0.0.2"]);
        server.say(Says::Truth);
        pass(4 * SECOND).await;
        assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]), "{code}");
        resolver.lookups.ended().await;
        assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.2"]), "{code}");
    }
}

#[tokio::test]
async fn a_failure_of_long_ago_is_no_reason_for_an_old_address() {
    let (server, resolver) = known().await;
    server.say(Says::Code(ResponseCode::ServFail));
    pass(50 * SECOND).await;
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.1"]));
    resolver.lookups.ended().await;
    server.say(Says::Truth);
    server.set("a.test", &["127.0.0.2"]);
    pass(30 * 60 * SECOND).await;
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.2"]));
}

#[tokio::test]
async fn a_workspace_that_is_gone_is_not_kept() {
    let (server, resolver) = known().await;
    server.remove("a.test");
    pass(61 * SECOND).await;
    assert_eq!(ask(&resolver, "a.test").await, Err(ResolveError::NotFound));
    server.say(Says::Nothing);
    assert_eq!(at_once(&resolver, "a.test"), Err(ResolveError::NotFound));
}

#[tokio::test]
async fn a_workspace_that_moved_is_found_while_its_old_address_is_kept() {
    let (server, resolver) = known().await;
    server.set("a.test", &["127.0.0.2"]);
    pass(30 * 60 * SECOND).await;
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.2"]));
}

/// A workspace that moved must not be waited for until its TTL is over.
#[tokio::test]
async fn a_name_whose_addresses_take_no_connection_is_asked_for_again_once_a_second() {
    let (server, resolver) = known().await;
    let again = async || resolver.resolve_unreachable(&host("a.test")).await;
    server.set("a.test", &["127.0.0.2"]);
    assert_eq!(again().await, ips(&["127.0.0.1"]), "it was asked for a moment ago");
    assert_eq!(server.questions(), 2);
    pass(SECOND).await;
    let (one, other) = tokio::join!(again(), again());
    assert_eq!((one, other), (ips(&["127.0.0.2"]), ips(&["127.0.0.2"])));
    assert_eq!(server.questions(), 4, "one lookup for both");
    assert_eq!(at_once(&resolver, "a.test"), ips(&["127.0.0.2"]));
    // A silent server takes nothing away before the TTL is over.
    server.say(Says::Code(ResponseCode::ServFail));
    pass(2 * SECOND).await;
    assert_eq!(again().await, ips(&["127.0.0.2"]));
    assert_eq!(resolver.resolve_unreachable(&host("127.0.0.7")).await, ips(&["127.0.0.7"]));
}

#[tokio::test]
async fn an_expired_address_that_takes_no_connection_is_dropped() {
    let (server, resolver) = known().await;
    server.say(Says::Code(ResponseCode::ServFail));
    pass(70 * SECOND).await;
    assert_eq!(ask(&resolver, "a.test").await, ips(&["127.0.0.1"]), "while no name server answers");
    let again = resolver.resolve_unreachable(&host("a.test")).await;
    assert_eq!(again, Err(ResolveError::Unavailable));
    assert_eq!(ask(&resolver, "a.test").await, Err(ResolveError::Unavailable));
}
