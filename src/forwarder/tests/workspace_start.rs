//! Workspaces that are starting.

use super::harness::*;

const REFUSED: &str =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno";

/// What a request that accepts this gets where the workspace says that.
async fn asked(served: &Served, workspace: &Workspace, accept: &str, answer: &str) -> (String, String) {
    let mut gateway = served.connect().await;
    let stamp = served.stamp(workspace);
    gateway.write(format!("GET / HTTP/1.1\r\nHost: h\r\nAccept: {accept}\r\n{stamp}\r\n")).await;
    let mut inside = workspace.accept().await;
    inside.head().await;
    inside.write(answer).await;
    gateway.response().await
}

#[tokio::test]
async fn a_navigation_to_a_workspace_that_is_not_ready_gets_the_page_that_waits() {
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let own_page = REFUSED.replace("text/plain", "Text/HTML; charset=utf-8");
    let own_wait = REFUSED.replace("\r\n\r\n", "\r\nretry-after: 77\r\n\r\n");
    for (accept, answer, waits, comes_again) in [
        ("text/html", REFUSED, true, Some("5")),
        ("text/html", &own_page, false, None),
        ("*/*", REFUSED, false, Some("5")),
        ("*/*", &own_wait, false, Some("77")),
    ] {
        let (head, body) = asked(&served, &workspace, accept, answer).await;
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert_eq!(body.contains("http-equiv=\"refresh\""), waits, "{accept} {answer}: {body}");
        assert_eq!(body == "no", !waits);
        let lower = head.to_ascii_lowercase();
        let told: Vec<_> = lower.lines().filter_map(|line| line.strip_prefix("retry-after: ")).collect();
        assert_eq!(told, Vec::from_iter(comes_again), "{accept} {answer}: {head}");
    }
}

/// A browser also asks for a page's icon, which gets the 503 as it is.
#[tokio::test]
async fn the_page_says_since_when_until_the_workspace_has_answered() {
    const SINCE: &str = "It has not answered for ";
    let (served, workspace) = (Served::new().await, Workspace::new().await);
    let waits = async || {
        let (_, page) = asked(&served, &workspace, "text/html", REFUSED).await;
        assert!(page.contains("http-equiv=\"refresh\""), "{page}");
        page.contains(SINCE)
    };
    assert!(!waits().await);
    within(async {
        while !waits().await {
            asked(&served, &workspace, "image/*", REFUSED).await;
        }
    })
    .await;
    asked(&served, &workspace, "image/*", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert!(!waits().await, "it has answered, and the next start is another one");
}
