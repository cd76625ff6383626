//! Malformed frames, and what the runner must answer.

use std::time::{Duration, Instant};

use kube_coders::Program;

use crate::peer::{PATIENCE, Peer};
use crate::program::Runner;
use crate::served::Served;
use crate::skip::skip;
use crate::wire::{Answer, Call, ERROR, Frame, PREPARE, Prepare, REQUEST, ResponseCall, error, extra_info};

/// What a runner may grow by, in KiB, whatever strangers announce.
const GROWTH: u64 = 8 * 1024;

const UPSTREAM: &str = "user-upstream";
const CONF: &str = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:1"}"#;

fn shipped() -> Served {
    Served::start(Program::new(), &[])
}

#[test]
fn a_frame_split_at_every_byte_is_one_frame() {
    let served = shipped();
    let mut peer = served.connect();
    let frame = Call::new(1, peer.prepare(UPSTREAM, CONF)).frame();
    let bytes = frame.bytes();
    for at in 1..bytes.len() {
        let (first, second) = bytes.split_at(at);
        peer.write(first);
        std::thread::yield_now();
        peer.write(second);
        // A question comes first; without an answer to it the call goes on.
        assert_eq!(peer.receive().unwrap().question().as_deref(), Some("request_id"), "split at {at}");
        let answer = extra_info(None).bytes();
        let (first, second) = answer.split_at(at % answer.len());
        peer.write(first);
        std::thread::yield_now();
        peer.write(second);
        assert_eq!(peer.receive().unwrap().refusal().0, 401, "split at {at}");
    }
    for byte in bytes {
        peer.write(&[byte]);
        std::thread::yield_now();
    }
    assert_eq!(peer.receive().unwrap().question().as_deref(), Some("request_id"));
}

#[test]
fn two_frames_in_one_write_get_two_answers_in_order() {
    let served = shipped();
    let mut peer = served.connect();
    let token = peer.prepare(UPSTREAM, CONF);
    let prepare = Prepare::new("route#1#ext-plugin-pre-req#2", &[(UPSTREAM, CONF)]).frame().bytes();
    let call = Call::new(5, token ^ 1).frame().bytes();
    peer.write(&[&prepare[..], &call, &prepare].concat());
    assert_eq!(peer.receive().unwrap().token(), token);
    assert_eq!(peer.receive().unwrap().error_code(), Some(2));
    assert_eq!(peer.receive().unwrap().token(), token);
}

#[test]
fn an_announced_length_takes_no_memory_before_its_data() {
    let runner = Runner::start(&[]);
    assert_answers_in_words(&runner);
    let before = runner.memory();
    let mut peers: Vec<_> = (0..200).map(|_| Peer::connect(&runner.socket)).collect();
    for peer in &mut peers {
        peer.write(&[REQUEST, 0xff, 0xff, 0xff, 1, 2, 3]);
    }
    // Once the end of a connection is answered, all before it has been read.
    for peer in &mut peers {
        peer.finish_writing();
        assert_eq!(peer.receive(), None);
    }
    let grown = runner.memory().peak - before.now;
    assert!(grown < GROWTH, "grown by {grown} KiB from {before:?}");
}

fn assert_answers_in_words(runner: &Runner) {
    let mut peer = Peer::connect(&runner.socket);
    let token = peer.prepare(UPSTREAM, CONF);
    peer.send(&Call::new(9, token).frame());
    assert_eq!(peer.receive().unwrap().question().as_deref(), Some("request_id"));
    assert_eq!(peer.ask(&extra_info(Some(b"id-1"))).refusal(), (401, "identity-missing".to_owned()));
}

#[test]
fn an_unknown_kind_closes_its_connection_and_no_other() {
    let served = shipped();
    let mut other = served.connect();
    let token = other.prepare(UPSTREAM, CONF);
    for kind in [5, 77, 255] {
        let mut peer = served.connect();
        peer.write(&[kind, 0, 0, 1, 0]);
        assert_eq!(peer.receive(), None);
    }
    assert_eq!(other.ask(&Call::new(1, token ^ 1).frame()).error_code(), Some(2));
    assert_eq!(other.prepare(UPSTREAM, CONF), token);
}

#[test]
fn an_answer_to_nothing_is_refused_and_its_connection_closed() {
    let served = shipped();
    for frame in [extra_info(None), extra_info(Some(b"x")), error(0), error(2)] {
        let mut peer = served.connect();
        assert_eq!(peer.ask(&frame).error_code(), Some(0), "{frame:?}");
        assert_eq!(peer.receive(), None);
    }
}

#[test]
fn an_unknown_token_is_error_2_and_the_connection_stays() {
    let served = shipped();
    let mut peer = served.connect();
    let token = peer.prepare(UPSTREAM, CONF);
    for unknown in [0, 1, token ^ 1, u32::MAX - token % 2] {
        assert_eq!(peer.ask(&Call::new(1, unknown).frame()).error_code(), Some(2));
        let response = ResponseCall { id: 1, status: 200, conf_token: unknown, ..ResponseCall::default() };
        assert_eq!(peer.ask(&response.frame()).error_code(), Some(2));
    }
    peer.send(&Call::new(9, token).frame());
    assert_eq!(peer.receive().unwrap().question().as_deref(), Some("request_id"));
    assert_eq!(peer.ask(&extra_info(None)).refusal().0, 401);
}

#[test]
fn a_route_has_one_token_for_a_chain_and_in_another_life_another() {
    let (one, other) = (shipped(), shipped());
    let prepare = |key: &str, confs: &[(&str, &str)]| Prepare::new(key, confs).frame();
    let twice = [(UPSTREAM, CONF), (UPSTREAM, CONF)];
    let mut peer = one.connect();
    let token = peer.ask(&prepare("route#1#ext-plugin-pre-req#1", &twice[..1])).token();
    assert_ne!(token, 0);
    assert_eq!(peer.ask(&prepare("route#1#ext-plugin-pre-req#7", &twice[..1])).token(), token);
    assert_ne!(peer.ask(&prepare("route#2#ext-plugin-pre-req#7", &twice[..1])).token(), token);
    assert_ne!(peer.ask(&prepare("route#1#ext-plugin-pre-req#1", &twice)).token(), token);
    let conf = format!("{CONF} ");
    assert_ne!(peer.ask(&prepare("route#1#x#1", &[(UPSTREAM, &conf)])).token(), token);
    assert_ne!(other.connect().prepare(UPSTREAM, CONF), token);
}

#[test]
fn a_conf_that_is_refused_is_logged_without_its_content() {
    const SECRET: &str = "s3cret-of-the-conf";
    let runner = Runner::start(&[]);
    let mut peer = Peer::connect(&runner.socket);
    for (plugin, conf, parts) in [
        ("nosuch", r#"{"a": "S"}"#, &["no such plugin", "plugin=\"nosuch\"", "known=\"user-upstream\""][..]),
        (
            UPSTREAM,
            "{\"identity\": {\"trust\": \"S\"},\n \"upstream\": \"http://a:1\"}",
            &["user-upstream", "identity.trust: ", "(line 1, column "],
        ),
        (
            UPSTREAM,
            "{\"identity\": {\"trust\": \"gateway\"},\n \"upstream\": \"http://S S:1\"}",
            &["user-upstream", "upstream: ", "(line 2, column "],
        ),
        (
            UPSTREAM,
            r#"{"identity": "S"}"#,
            &["identity: invalid type: string, expected an object", "(line 1, column "],
        ),
        (UPSTREAM, "{\"identity\":\n\n S", &["user-upstream", "(line 3, column "]),
        (
            UPSTREAM,
            r#"{"identity": {"trust": "verified"}, "upstream": "http://S:1"}"#,
            &["identity: `issuer` is missing"],
        ),
    ] {
        let conf = conf.replace('S', SECRET);
        let answer = peer.ask(&Prepare::new("route#17#ext-plugin-pre-req#1", &[(plugin, &conf)]).frame());
        assert_eq!(answer.error_code(), Some(0), "{conf}");
        let line = runner.program.line(parts);
        assert!(line.contains("conf refused") && line.contains("route#17#"), "{line}");
    }
    assert_answers_in_words(&runner);
    let log = runner.program.lines().join("\n");
    assert!(!log.contains(SECRET), "{log}");
}

#[test]
fn silent_connections_cost_little_and_delay_no_other() {
    const SILENT: usize = 2000;
    // In KiB for each of them. It was 11.3 or 12.3 without optimisation: the allocator
    // takes memory in steps of 2 MiB, one more or less.
    const EACH: u64 = 16;
    let limit = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files = limit.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    if files.split_whitespace().next().unwrap().parse().is_ok_and(|files: usize| files < SILENT + 500) {
        return skip("fewer open files are allowed than connections are needed");
    }
    let runner = Runner::start(&[]);
    assert_answers_in_words(&runner);
    let before = runner.memory();
    let silent: Vec<_> = (0..SILENT).map(|_| Peer::connect(&runner.socket)).collect();
    let since = Instant::now();
    assert_answers_in_words(&runner);
    assert!(since.elapsed() < Duration::from_secs(5), "answered after {:?}", since.elapsed());
    let grown = runner.memory().peak - before.now;
    assert!(grown < SILENT as u64 * EACH, "grown by {grown} KiB from {before:?}");
    drop(silent);
    assert_answers_in_words(&runner);
}

/// Numbers that are the same for the same seed (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

/// A payload that is hardly right: a good one with bytes changed, cut off, or
/// bytes of no meaning at all.
fn hardly_right(random: &mut Random, good: &[Frame]) -> Frame {
    let mut frame = good[random.below(good.len())].clone();
    match random.below(4) {
        0 => frame.payload.truncate(random.below(frame.payload.len())),
        1 => frame.payload = (0..random.below(200)).map(|_| random.next().to_be_bytes()[0]).collect(),
        _ => {
            for _ in 0..=random.below(6) {
                let at = random.below(frame.payload.len());
                frame.payload[at] = random.next().to_be_bytes()[0];
            }
        }
    }
    frame
}

#[test]
fn a_payload_that_is_not_right_gets_an_answer_that_is() {
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let mut random = Random(u64::from(seed) + 1);
    let mut runner = Runner::start(&["--call-deadline", "10s"]);
    let mut peer = Peer::connect(&runner.socket);
    let conf_token = peer.prepare(UPSTREAM, CONF);
    let good = [
        Prepare::new("route#1#x#1", &[(UPSTREAM, CONF)]).frame(),
        Call::new(1, conf_token).frame(),
        ResponseCall { id: 1, status: 200, conf_token, ..ResponseCall::default() }.frame(),
    ];
    let (mut answers, mut refused) = (0, 0);
    for round in 0..3000 {
        let frame = hardly_right(&mut random, &good);
        peer.send(&frame);
        let mut answer = peer.receive();
        while let Some(question) = answer.as_ref().filter(|answer| answer.kind == crate::wire::EXTRA_INFO) {
            assert!(question.is_valid_for_gateway());
            peer.send(&extra_info(None));
            answer = peer.receive();
        }
        let place = format!("seed {seed}, round {round}: {frame:?}");
        match answer {
            Some(answer) => {
                assert!(answer.kind == frame.kind || answer.kind == ERROR, "{place}");
                assert!(answer.is_valid_for_gateway(), "{place}");
                answers += 1;
                refused += usize::from(answer.kind == ERROR || frame.kind != PREPARE && is_503(&answer));
            }
            None => peer = Peer::connect(&runner.socket),
        }
    }
    assert!(runner.program.is_running(), "seed {seed}");
    assert!(answers > 1000 && refused > 100, "seed {seed}: {answers} answers, {refused} of them refusals");
    assert_answers_in_words(&runner);
    let log = runner.program.lines().join("\n");
    assert!(!log.contains("panicked") && !log.contains("ended by a bug"), "seed {seed}: {log}");
}

fn is_503(answer: &Frame) -> bool {
    answer.kind == REQUEST && matches!(answer.answer().1, Answer::Stop { status: 503, .. })
}

#[test]
fn a_connection_over_the_limit_is_closed_at_once() {
    let runner = Runner::start(&["--max-connections", "2"]);
    let mut served: Vec<_> = (0..2).map(|_| Peer::connect(&runner.socket)).collect();
    for peer in &mut served {
        peer.prepare(UPSTREAM, CONF);
    }
    let since = Instant::now();
    assert_eq!(Peer::connect(&runner.socket).receive(), None);
    assert!(since.elapsed() < PATIENCE / 2);
    runner.program.line(&["the limit is reached", "limit=2", "--max-connections"]);
    served.pop();
    // The place is free once the runner has seen the end of the connection.
    crate::peer::until("a free place", || {
        let mut peer = Peer::connect(&runner.socket);
        peer.finish_writing_after(&Prepare::new("route#1#x#1", &[(UPSTREAM, CONF)]).frame());
        peer.receive()
    });
}
