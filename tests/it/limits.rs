//! Plugins that fail, and calls that want too much: 503 for this call, and
//! nothing for any other.

use std::time::Duration;

use apisix_plugin_runner::{Action, Plugin, PluginError, Request};
use kube_coders::Program;
use tokio::time::timeout;

use crate::served::Served;
use crate::wire::{Call, Prepare, extra_info};

/// Fails in the way that its conf names.
struct Fails;

impl Plugin for Fails {
    const NAME: &'static str = "fails";
    type Config = String;

    async fn on_request(&self, how: &String, request: &mut Request<'_>) -> Result<Action, PluginError> {
        match how.as_str() {
            "never ends" => std::future::pending().await,
            "panics" => panic!("a bug of a plugin's author"),
            "says an error" => Err("no way".into()),
            "asks and leaves" => {
                let asked = timeout(Duration::from_millis(50), request.var("slow")).await;
                request.set_header("x-asked", if asked.is_ok() { "yes" } else { "no" })?;
                Ok(Action::Continue)
            }
            "asks often" => {
                for number in 0..100 {
                    request.var(&format!("v{number}")).await?;
                }
                Ok(Action::Continue)
            }
            "asks for much" => {
                request.body().await?;
                Ok(Action::Continue)
            }
            _ => Ok(Action::Continue),
        }
    }
}

/// Cannot even be prepared.
struct Panics;

impl Plugin for Panics {
    const NAME: &'static str = "panics";
    type Config = ();

    fn check(&self, _: &()) -> Result<(), PluginError> {
        panic!("a bug of a plugin's author")
    }

    async fn on_request(&self, _: &(), _: &mut Request<'_>) -> Result<Action, PluginError> {
        Ok(Action::Continue)
    }
}

fn served(args: &[&str]) -> Served {
    Served::start(Program::new().plugin(Fails).plugin(Panics), args)
}

fn conf(how: &str) -> String {
    format!("{how:?}")
}

/// The status and code of a call that fails so; every question is answered so.
#[track_caller]
fn failure(served: &Served, how: &str, answer: Option<&[u8]>) -> (u16, String) {
    let mut peer = served.connect();
    let token = peer.prepare("fails", &conf(how));
    let mut frame = peer.ask(&Call::new(3, token).frame());
    while frame.kind == crate::wire::EXTRA_INFO {
        frame = peer.ask(&extra_info(answer));
    }
    assert_eq!(frame.answer().0, 3);
    let refusal = frame.refusal();
    // The connection goes on.
    assert_eq!(peer.prepare("fails", &conf(how)), token);
    refusal
}

fn runner_failed() -> (u16, String) {
    (503, "runner-failed".to_owned())
}

#[test]
fn a_call_that_does_not_end_is_answered_at_its_deadline() {
    let served = served(&["--call-deadline", "200ms"]);
    assert_eq!(failure(&served, "never ends", None), runner_failed());
}

#[test]
fn a_panic_and_an_error_answer_their_call_and_hurt_no_other() {
    let served = served(&[]);
    let mut waiting = served.connect();
    let token = waiting.prepare("fails", &conf("asks for much"));
    waiting.send(&Call::new(8, token).frame());
    assert_eq!(waiting.receive().unwrap().question(), None);
    assert_eq!(failure(&served, "panics", None), runner_failed());
    assert_eq!(failure(&served, "says an error", None), runner_failed());
    let refused = served.connect().ask(&Prepare::new("k", &[("panics", "null")]).frame());
    assert_eq!(refused.error_code(), Some(0));
    assert_eq!(waiting.ask(&extra_info(Some(b"body"))).answer(), (8, crate::wire::Answer::Unchanged));
}

#[test]
fn too_many_questions_and_too_many_bytes_fail_their_call() {
    let served = served(&["--max-questions", "5", "--max-call-bytes", "1000"]);
    assert_eq!(failure(&served, "asks often", Some(b"v")), runner_failed());
    assert_eq!(failure(&served, "asks for much", Some(&[7; 1001])), runner_failed());
    let mut peer = served.connect();
    let token = peer.prepare("fails", &conf("asks for much"));
    peer.send(&Call::new(4, token).frame());
    assert_eq!(peer.receive().unwrap().question(), None);
    assert_eq!(peer.ask(&extra_info(Some(&[7; 1000]))).answer(), (4, crate::wire::Answer::Unchanged));
}

#[test]
fn five_questions_are_asked_and_no_sixth() {
    let served = served(&["--max-questions", "5"]);
    let mut peer = served.connect();
    let token = peer.prepare("fails", &conf("asks often"));
    peer.send(&Call::new(4, token).frame());
    for number in 0..5 {
        assert_eq!(peer.receive().unwrap().question(), Some(format!("v{number}")));
        peer.send(&extra_info(None));
    }
    assert_eq!(peer.receive().unwrap().refusal(), runner_failed());
}

#[test]
fn a_question_that_is_given_up_costs_neither_the_answer_nor_the_next_call() {
    let served = served(&[]);
    let mut peer = served.connect();
    let token = peer.prepare("fails", &conf("asks and leaves"));
    peer.send(&Call::new(6, token).frame());
    assert_eq!(peer.receive().unwrap().question().as_deref(), Some("slow"));
    // The gateway is slow: the answer of the call is there before that of the question.
    let (id, answer) = peer.receive().unwrap().answer();
    let crate::wire::Answer::Rewrite { headers, .. } = answer else { panic!("{answer:?}") };
    assert_eq!((id, headers), (6, vec![(b"x-asked".to_vec(), Some(b"no".to_vec()))]));
    peer.send(&extra_info(Some(b"late")));
    // It is taken for no call; then the connection ends, which costs a gateway nothing.
    assert_eq!(peer.receive(), None);
    assert_eq!(served.connect().prepare("fails", &conf("asks and leaves")), token);
}
