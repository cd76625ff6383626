"""The crates for plugin authors, used as from a registry: outside the workspace.

`cargo package` makes the archives, and programs outside the workspace are built against what
is in them. One target directory serves all builds; KUBE_CODERS_PACKAGED_TARGET names one that
is kept between runs.
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
import tomllib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CRATES = ["apisix-ext-plugin", "apisix-plugin-runner"]
EXAMPLES = ["greet", "body-guard", "header-route"]
LINES = """        tracing::info!("greets");
        tracing::debug!(name, "the name");
"""

# How long a program may take for what takes it a moment.
DEADLINE = 30

work = None


def setUpModule():
    global work
    work = Work()
    try:
        work.unpack_crates()
        work.write_programs()
        work.build_programs()
    except BaseException:
        work.remove()
        raise


def tearDownModule():
    work.remove()


class Work:
    """A folder outside the workspace, and what is built in it."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="packaged-"))
        target = os.environ.get("KUBE_CODERS_PACKAGED_TARGET")
        self.target = pathlib.Path(target) if target else self.folder / "target"
        self.environment = {
            **os.environ,
            "CARGO_TARGET_DIR": str(self.target),
            "RUSTFLAGS": "-D warnings",
        }
        self.manifests = {}

    def remove(self):
        shutil.rmtree(self.folder)

    def cargo(self, *arguments, cwd):
        began = time.monotonic()
        command = ["cargo", *arguments]
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(f"{time.monotonic() - began:.0f} s: {' '.join(command)}", flush=True)
        if done.returncode != 0:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def unpack_crates(self):
        selected = [word for crate in CRATES for word in ("--package", crate)]
        self.cargo("package", "--locked", "--allow-dirty", "--no-verify", "--quiet", *selected, cwd=ROOT)
        for archive in sorted((self.target / "package").glob("*.crate")):
            with tarfile.open(archive) as opened:
                opened.extractall(self.folder / "crates", filter="data")
        for folder in (self.folder / "crates").iterdir():
            manifest = tomllib.loads((folder / "Cargo.toml").read_text())
            self.manifests[manifest["package"]["name"]] = (folder, manifest)

    def write_programs(self):
        """A workspace of its own. The versions of the crates are those of our lock file."""
        patches = "\n".join(f'{name} = {{ path = "{self.manifests[name][0]}" }}' for name in CRATES)
        members = ["hello", *EXAMPLES]
        self.write(
            "Cargo.toml", f'[workspace]\nresolver = "3"\nmembers = {members}\n\n[patch.crates-io]\n{patches}\n'
        )
        shutil.copy(ROOT / "Cargo.lock", self.folder)
        shutil.copy(ROOT / "rust-toolchain.toml", self.folder)
        hello = readme_program()
        self.write("hello/Cargo.toml", manifest("hello", [], ['tracing = { version = "0.1", default-features = false }']))
        self.write("hello/src/main.rs", hello)
        last = "        Ok(Action::Continue)\n"
        assert hello.count(last) == 1, hello
        self.write("hello/examples/hello.rs", hello.replace(last, LINES + last))
        for example in EXAMPLES:
            self.write(f"{example}/Cargo.toml", manifest(example, ['serde = { version = "1", features = ["derive"] }']))
            self.write(f"{example}/src/main.rs", (ROOT / "examples" / example / "main.rs").read_text())

    def write(self, path, text):
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build_programs(self):
        self.cargo("build", "--quiet", "--workspace", "--bins", "--examples", cwd=self.folder)

    def program(self, name):
        return self.target / "debug" / name


def readme_program():
    text = (ROOT / "crates/runner/README.md").read_text()
    programs = re.findall(r"^```rust[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    programs = [program for program in programs if "fn main()" in program]
    assert len(programs) == 1, programs
    return programs[0]


def manifest(name, dependencies, dev_dependencies=()):
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    lines = [
        "[package]",
        f'name = "{name}"',
        'version = "1.2.3"',
        'edition = "2024"',
        "",
        "[dependencies]",
        f'apisix-plugin-runner = "{version}"',
        *dependencies,
        "",
        "[dev-dependencies]",
        *dev_dependencies,
    ]
    return "\n".join(lines) + "\n"


class Running:
    """A runner that serves a socket in a folder of its own."""

    def __init__(self, program, *arguments):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="runner-"))
        self.socket = self.folder / "hello.sock"
        places = {name: str(self.folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_STATE_HOME")}
        self.process = subprocess.Popen(
            [program, "run", "--listen-address", f"unix:{self.socket}", *arguments],
            cwd=self.folder,
            env={**os.environ, **places},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.late = threading.Timer(DEADLINE, self.process.kill)
        self.late.start()
        self.lines = []

    def __enter__(self):
        self.line_with("runner listens")
        return self

    def __exit__(self, *_):
        self.late.cancel()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        shutil.rmtree(self.folder)

    def line_with(self, text):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return self.lines[-1]
        raise AssertionError(f"{text!r} is not in the log: {self.lines}")

    def stop(self):
        """Stops the runner, and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.lines += [line.rstrip("\n") for line in self.process.stderr]
        return self.process.wait()

    def files(self):
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}


def descriptors(pid):
    return [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]


def internet_sockets(pid):
    """The lines of the kernel's tables of TCP and UDP sockets that belong to a process."""
    own = {found[1] for link in descriptors(pid) if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    lines = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = pathlib.Path(f"/proc/{pid}/net/{table}")
        # A kernel without IPv6 has no tables of it.
        entries = path.read_text().splitlines()[1:] if path.exists() else []
        lines += [line for line in entries if line.split()[9] in own]
    return lines


def ran(program, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APISIX_")}
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=DEADLINE)


def call(runner, *arguments):
    address = f"unix:{runner.socket}"
    return ran(
        work.program("hello"), "call", "--listen-address", address, "--plugin", "hello", "--conf", "null", *arguments
    )


class Packages(unittest.TestCase):
    def test_the_build_uses_both_packaged_crates(self):
        self.assertEqual(sorted(work.manifests), sorted(CRATES))
        built = work.cargo("tree", "--package", "hello", "--prefix", "none", "--edges", "normal", cwd=work.folder)
        for name in CRATES:
            folder = work.manifests[name][0]
            self.assertRegex(built, rf"(?m)^{name} v\S+ \({re.escape(str(folder))}\)")

    def test_a_package_has_its_readme_and_depends_on_no_path(self):
        for name, (folder, manifest) in work.manifests.items():
            self.assertTrue((folder / "README.md").is_file(), name)
            for dependency, said in manifest["dependencies"].items():
                self.assertNotIn("path", said, f"{name}: {dependency}")

    def test_a_package_holds_sources_and_what_explains_them_and_nothing_else(self):
        explains = {"Cargo.lock", "Cargo.toml", "Cargo.toml.orig", "LICENSE", "README.md", ".cargo_vcs_info.json"}
        schemas = {"ext-plugin.fbs"}
        for name, (folder, _) in work.manifests.items():
            files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
            vectors = {file for file in files if file.parts[:2] == ("tests", "vectors") and file.suffix == ".json"}
            others = {str(file) for file in files - vectors if file.parts[0] != "src"}
            self.assertEqual(others - schemas, explains, name)
            self.assertEqual({file.suffix for file in files if file.parts[0] == "src"}, {".rs"}, name)

    def test_a_package_holds_each_file_that_its_sources_include(self):
        """So its own tests compile outside this repository."""
        included = 0
        for name, (folder, _) in work.manifests.items():
            for source in (folder / "src").rglob("*.rs"):
                for path in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
                    file = (source.parent / path).resolve()
                    self.assertTrue(file.is_relative_to(folder.resolve()), f"{name}: {source}: {path}")
                    self.assertTrue(file.is_file(), f"{name}: {source}: {path}")
                    included += 1
        # The READMEs and the vectors.
        self.assertGreaterEqual(included, 4)

    def test_no_package_holds_more_than_a_megabyte(self):
        for name, (folder, _) in work.manifests.items():
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            self.assertLess(size, 1_000_000, name)


class Features(unittest.TestCase):
    """The crate's own tests with each combination of features, in the workspace."""

    def check(self, features):
        said = work.cargo(
            "test",
            "--locked",
            "--quiet",
            "--package",
            "apisix-plugin-runner",
            "--no-default-features",
            "--features",
            features,
            cwd=ROOT,
        )
        # The unit tests, and the examples in the documentation.
        passed = re.findall(r"test result: ok\. (\d+) passed; 0 failed", said)
        self.assertEqual(len(passed), 2, said)
        self.assertNotIn("0", passed, said)

    def test_these_are_all_features(self):
        features = work.manifests["apisix-plugin-runner"][1]["features"]
        self.assertEqual(set(features), {"default", "cli", "direct", "schema"})
        self.assertEqual(set(features["default"]), {"cli", "direct"})

    def test_no_features(self):
        self.check("")

    def test_cli(self):
        self.check("cli")

    def test_direct(self):
        self.check("direct")

    def test_the_default(self):
        self.check("cli,direct")

    def test_schema(self):
        self.check("schema")

    def test_all(self):
        self.check("cli,direct,schema")


class Hello(unittest.TestCase):
    """The program of the README."""

    def test_the_greeting_is_printed(self):
        with Running(work.program("hello")) as runner:
            said = call(runner, "--header", "x-name: alice")
            self.assertEqual((said.returncode, said.stderr), (0, ""))
            self.assertIn("set x-greeting: hello alice", said.stdout)
            said = call(runner)
            self.assertEqual((said.returncode, said.stderr), (0, ""))
            self.assertIn("401", said.stdout)
            self.assertNotIn("x-greeting", said.stdout)

    def test_a_socket_of_the_internet_is_found(self):
        with socket.create_server(("127.0.0.1", 0)) as opened:
            port = f":{opened.getsockname()[1]:04X} "
            self.assertTrue(any(port in line for line in internet_sockets(os.getpid())))

    def test_it_opens_no_port(self):
        with Running(work.program("hello")) as runner:
            self.assertEqual(call(runner, "--header", "x-name: alice").returncode, 0)
            self.assertTrue(any(link.startswith("socket:") for link in descriptors(runner.process.pid)))
            self.assertEqual(internet_sockets(runner.process.pid), [])

    def test_it_writes_no_file_but_its_sockets(self):
        with Running(work.program("hello")) as runner:
            self.assertEqual(call(runner, "--header", "x-name: alice").returncode, 0)
            self.assertEqual(runner.files(), {"hello.sock", "hello.sock.takeover"})
            self.assertTrue(all(path.is_socket() for path in runner.folder.iterdir()))
            opened = [link for link in descriptors(runner.process.pid) if link.startswith("/")]
            self.assertEqual([link for link in opened if link != "/dev/null"], [])
            self.assertEqual(runner.stop(), 0, runner.lines)
            self.assertEqual(runner.files(), set())

    def test_help_and_version_name_the_program_alone(self):
        program = work.program("hello")
        self.assertEqual(ran(program, "--version").stdout, "hello 1.2.3\n")
        for command in ([], ["run"], ["call"], ["health"]):
            for flag in ("--help", "-h"):
                said = ran(program, *command, flag)
                self.assertEqual((said.returncode, said.stderr), (0, ""), command)
                words = " ".join(said.stdout.split())
                self.assertIn(f"Usage: {' '.join(['hello', *command])}", words)
                self.assertNotIn("kube", words.lower())
                if command:
                    self.assertIn("else unix:/run/hello/runner.sock]", words)
                    self.assertEqual(ran(program, *command, "--version").stdout, f"hello-{command[0]} 1.2.3\n")

    def test_errors_begin_with_the_programs_name(self):
        program = work.program("hello")
        said = ran(program, "run", "--listen-address", "tcp:1")
        expected = 'hello: these settings are wrong:\n--listen-address "tcp:1": does not begin with unix:\n'
        self.assertEqual((said.returncode, said.stderr), (2, expected))
        said = ran(program, "health")
        self.assertEqual(said.returncode, 1)
        self.assertRegex(said.stderr, r"^hello: /run/hello/runner\.sock: ")
        said = ran(program, "health", "--listen-address", "unix:/nowhere/hello.sock")
        self.assertEqual(said.returncode, 1)
        self.assertNotIn("kube", said.stderr)

    def test_nothing_in_the_log_names_another_program(self):
        with Running(work.program("hello"), "--log-level", "trace") as runner:
            self.assertEqual(call(runner, "--header", "x-name: alice").returncode, 0)
            self.assertEqual(runner.stop(), 0, runner.lines)
            self.assertEqual([line for line in runner.lines if "kube" in line.lower()], [])


class AuthorsLines(unittest.TestCase):
    """The README's program with two lines of its author's in the log."""

    def lines(self, *arguments):
        with Running(work.program("examples/hello"), *arguments) as runner:
            self.assertEqual(call(runner, "--header", "x-name: alice").returncode, 0)
            self.assertEqual(runner.stop(), 0, runner.lines)
            return [line for line in runner.lines if ": hello: " in line]

    def check(self, lines, *expected):
        self.assertEqual(len(lines), len(expected), lines)
        for line, (level, text) in zip(lines, expected):
            self.assertRegex(line, rf'^\S+ +{level} call\{{plugin=hello call=\d+ route="call"\}}: hello: {text}$')

    def test_information_is_shown_by_default(self):
        self.check(self.lines(), ("INFO", "greets"))

    def test_a_directive_shows_more_of_one_module(self):
        lines = self.lines("--log-level", "info,hello=debug")
        self.check(lines, ("INFO", "greets"), ("DEBUG", 'the name name="alice"'))


    def test_each_line_has_the_request_id_if_a_setting_asks_for_it(self):
        lines = self.lines("--log-request-id")
        self.assertEqual(len(lines), 1, lines)
        call_of = r'call\{plugin=hello call=\d+ route="call" request_id="[0-9a-f]{32}"\}'
        self.assertRegex(lines[0], rf"^\S+ +INFO {call_of}: hello: greets$")


class Examples(unittest.TestCase):
    def test_each_example_names_itself(self):
        for example in EXAMPLES:
            self.assertEqual(ran(work.program(example), "--version").stdout, f"{example} 1.0.0\n")
            said = ran(work.program(example), "run", "--help")
            self.assertIn(f"unix:/run/{example}/runner.sock]", " ".join(said.stdout.split()))


if __name__ == "__main__":
    unittest.main()
