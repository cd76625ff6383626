//! A program made with the SDK alone, started as a gateway starts one: by a process that
//! runs as root, while the gateway's workers run as another user.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::cli::example;
use crate::peer::{Peer, until};
use crate::process::{open_folder, program_for_another_user, spawned_by};
use crate::program::Program;
use crate::wire::Call;

const CONF: &str = r#"{"header": "x-user"}"#;

/// The master starts the privileged agent, which starts the runner, and then the worker,
/// which is its own child. The stranger has the worker's user and another parent.
const MASTER: &str = r#"
    sh -c '"$0" run; :' "$0" & agent=$!
    other_user="setpriv --reuid 65534 --regid 65534 --clear-groups"
    read -r _
    $other_user "$0" "$@" >&2; echo "worker $?" >&2
    sh -c 'other_user=$1; shift; $other_user "$0" "$@" >&2; exit $?' "$0" "$other_user" "$@"
    echo "stranger $?" >&2
    read -r _
    kill -KILL $agent
    read -r _
"#;

#[test]
fn a_plugin_program_serves_the_workers_of_the_gateway_that_starts_it_and_ends_with_it() {
    let folder = open_folder();
    let Some(program) = example("greet") else { return };
    let Some(program) = program_for_another_user(&folder, &program) else { return };
    let socket = folder.path().join("apisix-1.sock");
    let mut master = spawned_by("sh", &socket, "1");
    master.args(["-c", MASTER]).arg(&program);
    master.args(["call", "--plugin", "greet", "--conf", CONF, "--header", "x-user: alice"]);
    let mut master = Program::start(&mut master);
    let line = master.line(&["runner listens", "mode=\"0666\""]);
    assert!(line.contains(&format!("children of the gateway's process {}", master.pid())), "{line}");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);

    master.say("the runner listens");
    assert!(master.line(&["worker "]).ends_with("worker 0"), "{:?}", master.lines());
    master.line(&["set x-greeting: hello alice from test"]);
    assert!(master.line(&["stranger "]).ends_with("stranger 2"), "{:?}", master.lines());
    master.line(&["peer refused", "uid=65534"]);
    assert_conf_expires(&socket);

    master.say("end the agent");
    master.line(&["the gateway that started this runner is gone"]);
    until("the end of the socket's file", || (!socket.exists()).then_some(()));
    master.say("end yourself");
    master.all_ended();
}

/// The gateway keeps a conf token for the second that it named, and the runner for 1.2.
fn assert_conf_expires(socket: &Path) {
    let mut peer = Peer::connect(socket);
    let token = peer.prepare("greet", CONF);
    // Only the runner's clock ends it, so the runner is asked until it refuses.
    let call = Call::new(1, token).frame();
    assert_eq!(until("the end of a conf token", || peer.ask(&call).error_code()), 2);
}
