//! What can be typed, what is printed, and what is shipped to be pasted.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::peer::Peer;
use crate::program::{BINARY, Program, Runner, kube_coders, listen_address, run};
use crate::skip::skip;
use crate::wire::Prepare;

const EXAMPLES: [&str; 3] = ["greet", "body-guard", "header-route"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn every_name_is_the_one_that_was_made_independently() {
    let vectors: Value = serde_json::from_str(&read("tests/vectors/labels.json")).unwrap();
    let mut checked = 0;
    for vector in vectors.as_array().unwrap() {
        let Some(subject) = vector["value"].as_str().filter(|subject| !subject.contains('\0')) else {
            continue;
        };
        let template = vector["template"].as_str().unwrap();
        let printed = kube_coders(&["name", "--template", template, "--", subject]);
        match vector["label"].as_str() {
            Some(label) => {
                assert_eq!((printed.code, printed.stdout), (Some(0), format!("{label}\n")), "{subject}");
            }
            None => {
                assert_eq!((printed.code, printed.stdout), (Some(1), String::new()), "{subject}");
                assert!(printed.stderr.starts_with("kube-coders: "), "{}", printed.stderr);
            }
        }
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
    let printed = kube_coders(&["name", "alice", "", "Alice"]);
    let names = "code-alice\ncode-alice---3bc51062973c458d5a6f2d8d64a02324\n";
    assert_eq!((printed.code, printed.stdout.as_str()), (Some(1), names), "the others are still printed");
}

#[test]
fn a_name_is_made_from_an_upstream_and_with_the_digits_of_earlier_versions() {
    let name = |args: &[&str]| {
        let printed = kube_coders(&[&["name"], args, &["Alice"]].concat());
        (printed.code, printed.stdout + &printed.stderr)
    };
    let full = "code-alice---3bc51062973c458d5a6f2d8d64a02324";
    let ns = "ns.svc.cluster.local";
    for (args, expected) in [
        (&[][..], full.to_owned()),
        (&["--digits", "32"], full.to_owned()),
        (&["--digits", "16"], "code-alice---3bc51062973c458d".to_owned()),
        (&["--template", "http://code-{sub}.ns.svc.cluster.local:8443"], format!("{full}.{ns}")),
        (&["--template", "code-{sub}.ns.svc.cluster.local."], format!("{full}.{ns}")),
        (
            &["--digits", "16", "--template", "https://code-{sub}.ns.svc.cluster.local:8443"],
            format!("code-alice---3bc51062973c458d.{ns}"),
        ),
    ] {
        assert_eq!(name(args), (Some(0), format!("{expected}\n")), "{args:?}");
    }
    // An old template may have more bytes of its own than a new one.
    let long = format!("{}{{sub}}", "a".repeat(43));
    assert_eq!(name(&["--digits", "16", "--template", &long]).0, Some(0));
    let (code, said) = name(&["--template", &long]);
    assert_eq!(code, Some(2));
    assert!(said.contains("43 bytes of its own, and 27 are allowed"), "{said}");
    assert_eq!(name(&["--digits", "8"]).0, Some(2));
    assert_eq!(name(&["--template", "http://code-{sub}"]).0, Some(2));
}

#[test]
fn health_says_whether_a_runner_answers() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("runner.sock");
    let health = || kube_coders(&["health", "--listen-address", &listen_address(&socket)]);
    let absent = health();
    assert_eq!(absent.code, Some(1));
    let expected = format!("kube-coders: {}: connecting to the runner: ", socket.display());
    assert!(absent.stderr.starts_with(&expected), "{}", absent.stderr);
    assert!(absent.stderr.contains("no runner listens there; start one"), "{}", absent.stderr);
    let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let expected = format!("kube-coders: {}: the runner did not answer within 5s\n", socket.display());
    assert_eq!((health().code, health().stderr), (Some(1), expected));
    drop(silent);
    let _runner = Runner::start_at(&socket, &[]);
    assert_eq!((health().code, health().stderr), (Some(0), String::new()));
    let variable = [("APISIX_LISTEN_ADDRESS", listen_address(&socket))];
    assert_eq!(run(Command::new(BINARY).env_clear().envs(variable).arg("health")).code, Some(0));
}

#[test]
fn install_puts_the_program_where_it_is_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("kube-coders");
    std::fs::write(&target, "an older one").unwrap();
    for place in [&target, folder.path()] {
        let printed = kube_coders(&["install", place.to_str().unwrap()]);
        assert_eq!((printed.code, printed.stderr), (Some(0), String::new()));
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(run(Command::new(&target).args(["name", "alice"])).stdout, "code-alice\n");
    }
    // Over itself while it runs, and without a temporary file that is left.
    assert_eq!(run(Command::new(&target).arg("install").arg(&target)).code, Some(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let nowhere = folder.path().join("no/such");
    let refused = kube_coders(&["install", nowhere.to_str().unwrap()]);
    let expected = format!("kube-coders: {}: No such file or directory (os error 2)\n", nowhere.display());
    assert_eq!((refused.code, refused.stderr), (Some(2), expected));
}

#[test]
fn call_prints_the_decision() {
    let runner = Runner::start(&[]);
    let address = listen_address(&runner.socket);
    let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443"}"#;
    let call = |args: &[&str]| {
        kube_coders(&[&["call", "--listen-address", &address, "--conf", conf], args].concat())
    };
    let printed = call(&["--userinfo", r#"{"sub": "alice", "preferred_username": "Alice"}"#, "/a?b=1"]);
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let (first, changes) = printed.stdout.split_once('\n').unwrap();
    assert_eq!(first, "go on to http://127.0.0.1:8443 for \"alice\"");
    for line in
        ["remove x-userinfo", "set x-forwarded-user: alice", "set x-forwarded-preferred-username: Alice"]
    {
        assert!(changes.lines().any(|change| change.trim() == line), "{line}: {changes}");
    }
    assert!(!changes.contains("stamp"), "{changes}");
    assert!(!changes.contains("x-access-token"), "what is not there is not removed: {changes}");

    let printed = call(&[]);
    assert_eq!(printed.code, Some(0));
    assert!(
        printed.stdout.starts_with("stop 401\n") && printed.stdout.contains("identity-missing"),
        "{}",
        printed.stdout
    );

    for (conf, plugin, reason) in [
        ("{}", "user-upstream", "missing field `identity` (line 1, column 2)"),
        ("[]", "user-upstream", "invalid type: list, expected an object (line 1, column 0)"),
        // A plugin that this program does not have, and a conf that only its files make wrong.
        ("{}", "other", "its log says why, in a line with \"conf refused\""),
        (
            r#"{"identity": {"trust": "verified", "issuer": "https://a", "audience": ["b"], "ca_file": "/nonexistent"},
                "upstream": "http://code-{sub}:8443"}"#,
            "user-upstream",
            "its log says why, in a line with \"conf refused\"",
        ),
    ] {
        let args = ["call", "--listen-address", &address, "--plugin", plugin, "--conf", conf];
        let refused = kube_coders(&args);
        assert_eq!(refused.code, Some(2));
        assert_eq!(refused.stderr, format!("kube-coders: the runner refused the conf: {reason}\n"));
    }
}

/// As in `kube-coders name … | head -1`.
#[test]
fn a_reader_that_goes_away_ends_a_command_without_a_word() {
    let runner = Runner::start(&[]);
    let address = listen_address(&runner.socket);
    let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://127.0.0.1:8443"}"#;
    let claims = r#"{"sub": "alice"}"#;
    let commands: [&[&str]; 4] = [
        &["name", "alice"],
        &["explain", "--conf", conf, "--userinfo", claims],
        &["call", "--listen-address", &address, "--conf", conf, "--userinfo", claims],
        &["check", "apisix-conf/standalone/apisix.yaml"],
    ];
    for args in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(BINARY);
        let output = command.args(args).current_dir(root()).stdout(writer).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(141), "{args:?}");
    }
}

#[test]
fn one_start_shows_every_mistake_and_listens_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let address = listen_address(&folder.path().join("runner.sock"));
    let printed = kube_coders(&[
        "run",
        "--listen-address",
        &address,
        "--socket-mode",
        "999",
        "--call-deadline",
        "2m",
        "--forwarder-address",
        "0.0.0.0:9181",
        "--dns-server",
        "localhost",
    ]);
    assert_eq!(printed.code, Some(2));
    assert_eq!(
        printed.stderr,
        "kube-coders: these settings are wrong:\n\
         --socket-mode \"999\": not permission bits in octal, such as 0660\n\
         --call-deadline \"2m\": more than 59s\n\
         --forwarder-address \"0.0.0.0:9181\": not a loopback address: only the gateway on this machine may reach the forwarder\n\
         --dns-server \"localhost\": not an address with a port, such as 10.96.0.10:53\n"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let printed = run(Command::new(BINARY).env_clear().env("APISIX_LISTEN_ADDRESS", "nowhere").arg("run"));
    assert_eq!(printed.code, Some(2));
    assert!(printed.stderr.contains("APISIX_LISTEN_ADDRESS \"nowhere\""), "{}", printed.stderr);
}

#[test]
fn every_command_explains_itself() {
    for command in
        [&[][..], &["run"], &["call"], &["explain"], &["check"], &["name"], &["install"], &["health"]]
    {
        let printed = kube_coders(&[command, &["--help"]].concat());
        assert_eq!(printed.code, Some(0), "{command:?}");
        assert!(printed.stdout.contains("Usage: kube-coders"), "{command:?}: {}", printed.stdout);
    }
    assert_eq!(kube_coders(&["--version"]).stdout, format!("kube-coders {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(kube_coders(&["fly"]).code, Some(2));
}

/// The example's program, if the examples are built; `cargo test` builds them.
pub(crate) fn example(name: &str) -> Option<PathBuf> {
    let program = Path::new(BINARY).parent().unwrap().join("examples").join(name);
    if !program.exists() {
        skip(&format!("the example {name} is not built: cargo build --examples"));
        return None;
    }
    Some(program)
}

/// The text of the first block of this kind in a page.
#[track_caller]
fn blocks<'p>(page: &'p str, kind: &str) -> Vec<&'p str> {
    let fence = format!("```{kind}\n");
    let parts = page.split(&*fence).skip(1);
    let blocks: Vec<_> = parts.map(|part| part.split_once("```").unwrap().0).collect();
    assert!(!blocks.is_empty(), "no block of {kind}");
    blocks
}

/// The commands of a README, each as it would be typed for the built program,
/// with the socket of this test.
fn commands(page: &str, name: &str, program: &Path, socket: &Path) -> Vec<String> {
    let text = blocks(page, "sh").concat().replace("\\\n", " ");
    let commands = text.lines().map(|line| {
        let line = line.trim();
        let line = line.strip_prefix(&format!("cargo run --example {name} -- ")).expect("the example is run");
        assert!(line.contains(&format!("unix:/tmp/{name}.sock")), "{line}");
        let line = line.replace(&format!("/tmp/{name}.sock"), socket.to_str().unwrap());
        format!("exec {} {line}", program.display())
    });
    commands.collect()
}

#[test]
fn every_example_prints_what_its_page_says_and_takes_its_route() {
    for name in EXAMPLES {
        let Some(program) = example(name) else { return };
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("runner.sock");
        let page = read(format!("examples/{name}/README.md"));
        let commands = commands(&page, name, &program, &socket);
        let [start, call] = &commands[..] else { panic!("{commands:?}") };
        let runner = Program::start(Command::new("sh").args(["-c", start]));
        runner.line(&["runner listens"]);
        let printed = run(Command::new("sh").args(["-c", call]));
        assert_eq!(printed.code, Some(0), "{call}: {}", printed.stderr);
        assert_eq!(printed.stdout, blocks(&page, "text").concat(), "{call}");

        let confs = pre_req_confs(&format!("examples/{name}/route.yaml"));
        assert_eq!(confs.len(), 1, "{name}");
        assert_accepted(&socket, &confs);
    }
}

#[test]
fn every_example_is_in_the_list() {
    let folders = std::fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().path());
    let mut named: Vec<_> = folders
        .filter(|folder| folder.join("route.yaml").exists())
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    named.sort();
    let mut listed = EXAMPLES.to_vec();
    listed.sort_unstable();
    assert_eq!(named, listed);
}

#[track_caller]
fn yaml(path: &str) -> Value {
    let text = read(path);
    assert!(text.ends_with("\n#END\n"), "{path}: APISIX reads only a file that ends so");
    serde_saphyr::from_str(&text).unwrap()
}

/// The plugins with their confs that a file's routes have, of those that the
/// runner is asked about before the upstream.
#[track_caller]
fn pre_req_confs(path: &str) -> Vec<(String, String)> {
    let mut confs = Vec::new();
    for route in yaml(path)["routes"].as_array().unwrap() {
        let pre_req = &route["plugins"]["ext-plugin-pre-req"];
        assert_eq!(pre_req["allow_degradation"], false);
        for conf in pre_req["conf"].as_array().unwrap() {
            let text = |field: &str| conf[field].as_str().unwrap().to_owned();
            confs.push((text("name"), text("value")));
        }
    }
    assert!(!confs.is_empty());
    confs
}

#[track_caller]
pub(crate) fn assert_accepted(socket: &Path, confs: &[(String, String)]) {
    let confs: Vec<_> = confs.iter().map(|(name, conf)| (&**name, &**conf)).collect();
    let prepared = Peer::connect(socket).ask(&Prepare::new("route#1#ext-plugin-pre-req#1", &confs).frame());
    assert_ne!(prepared.token(), 0);
}
