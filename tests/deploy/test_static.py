"""The static program in a root with nothing but what the image has, as the image's user.

KUBE_CODERS_STATIC names the program: without it, or without root's rights, nothing is run.
"""

import contextlib
import http.server
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("KUBE_CODERS_STATIC")
INSIDE = "/opt/kube-coders/kube-coders"
USER = 636
PATIENCE = 30
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
# A key of RFC 7517, appendix A.1, that signs nothing here.
KEY = {
    "kty": "EC",
    "crv": "P-256",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    "use": "sig",
    "alg": "ES256",
    "kid": "1",
}


class Issuer(http.server.BaseHTTPRequestHandler):
    """Describes itself, and has a key."""

    def do_GET(self):
        here = f"http://{self.headers['Host']}"
        answers = {
            "/realms/dev/.well-known/openid-configuration": {
                "issuer": "http://key.test/realms/dev",
                "jwks_uri": f"{here}/keys",
            },
            "/keys": {"keys": [KEY]},
        }
        body = json.dumps(answers[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def final_stage():
    """What the Dockerfile's last stage takes, as the test below builds it."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return text[text.index("FROM scratch") :]


@unittest.skipUnless(PROGRAM, "KUBE_CODERS_STATIC does not name a static program")
@unittest.skipUnless(os.geteuid() == 0, "another root folder and another user need root's rights")
class StaticProgram(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        root = cls.root = pathlib.Path(cls.folder.name)
        root.chmod(0o755)
        for folder in ["opt/kube-coders", "etc", "run/kube-coders", "tmp", "proc"]:
            (root / folder).mkdir(parents=True)
        shutil.copy(PROGRAM, root / "opt/kube-coders/kube-coders")
        (root / "etc/passwd").write_text(f"kube-coders:x:{USER}:{USER}:kube-coders:/:/nonexistent\n")
        (root / "etc/group").write_text(f"kube-coders:x:{USER}:\n")
        # What a container's engine puts into any image.
        (root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
        (root / "etc/hosts").write_text("127.0.0.1 localhost key.test\n")
        for owned in ["run/kube-coders", "tmp"]:
            os.chown(root / owned, USER, USER)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def command(self, *args):
        # In a mount namespace of its own, where /proc can be seen as in a container.
        script = 'mount --bind /proc "$1/proc" && exec chroot --userspec="$2:$2" "$1" "${@:3}"'
        return ["unshare", "--mount", "bash", "-c", script, "bash", str(self.root), str(USER), INSIDE, *args]

    def ask(self, *args):
        return subprocess.run(
            self.command(*args), text=True, capture_output=True, check=False, env=ENVIRONMENT, timeout=PATIENCE
        )

    @contextlib.contextmanager
    def runner(self, *args):
        """A runner, and its log as it comes."""
        with subprocess.Popen(
            self.command("run", "--forwarder-address", "127.0.0.1:0", *args),
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as process:
            lines = queue.Queue()

            def read():
                for line in process.stderr:
                    lines.put(line)
                lines.put(None)

            threading.Thread(target=read, daemon=True).start()
            try:
                self.line(lines, "forwarder listens")
                yield process, lines
            finally:
                process.kill()

    def line(self, lines, part):
        seen = []
        while (line := lines.get(timeout=PATIENCE)) is not None:
            seen.append(line)
            if part in line:
                return line
        self.fail(f"no line with {part!r}: {''.join(seen)}")

    def test_the_root_is_the_image_s(self):
        self.assertIn(f"USER {USER}:{USER}", final_stage())
        self.assertIn(f'ENTRYPOINT ["{INSIDE}"]', final_stage())
        self.assertEqual(re.findall(r"(?m)^COPY (.*)$", final_stage())[0], "--from=build /image/ /")

    def test_it_is_built_as_the_image_builds_it(self):
        def flags(path):
            return re.findall(r"RUSTFLAGS='([^']+)'", (ROOT / path).read_text(encoding="utf-8"))

        self.assertEqual(flags("Dockerfile"), flags(".ci/run"))
        self.assertEqual(len(flags("Dockerfile")), 1)

    def test_it_needs_no_library(self):
        version = self.ask("--version")
        self.assertEqual((version.returncode, version.stderr), (0, ""))
        self.assertRegex(version.stdout, r"^kube-coders \d+\.\d+\.\d+\n$")
        self.assertEqual(self.ask("name", "alice").stdout, "code-alice\n")

    def test_it_installs_itself_where_there_is_no_cp(self):
        self.assertEqual(self.ask("install", "/tmp/copy").returncode, 0)
        self.assertEqual((self.root / "tmp/copy").read_bytes(), pathlib.Path(PROGRAM).read_bytes())

    def test_it_serves_says_that_it_is_well_and_drains(self):
        self.assertEqual(self.ask("health").returncode, 1)
        with self.runner() as (process, lines):
            self.assertEqual(self.ask("health").returncode, 0)
            process.send_signal(signal.SIGTERM)
            self.line(lines, "drained")
            self.assertEqual(process.wait(PATIENCE), 0)

    def test_it_knows_groups_by_name(self):
        with self.runner("--socket-group", "kube-coders") as _:
            self.assertEqual((self.root / "run/kube-coders/runner.sock").stat().st_gid, USER)
        unknown = self.ask("run", "--socket-group", "nobody-knows")
        self.assertEqual(unknown.returncode, 2)
        self.assertIn('--socket-group "nobody-knows"', unknown.stderr)

    def test_it_fetches_an_issuer_s_keys_by_name(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        conf = {
            "identity": {
                "trust": "verified",
                "issuer": "http://key.test/realms/dev",
                "discovery": f"http://key.test:{port}/realms/dev/.well-known/openid-configuration",
                "audience": ["apisix"],
                "allow_http": True,
            },
            "upstream": "http://code-{sub}:8443",
        }
        try:
            with self.runner() as (_, lines):
                self.assertIn("identity-missing", self.ask("call", "--conf", json.dumps(conf)).stdout)
                self.line(lines, "keys fetched")
        finally:
            server.shutdown()
            server.server_close()


if __name__ == "__main__":
    unittest.main()
