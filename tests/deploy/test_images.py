"""The images' scripts, run against a stand-in for Open VSX, and the Dockerfiles, read."""

import hashlib
import http.server
import io
import os
import re
import stat
import subprocess
import tempfile
import threading
import unittest
import warnings
import zipfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = REPOSITORY / "examples/kubernetes/images"
CHART = REPOSITORY / "examples/kubernetes/charts/workspace"
ROLES = ("backend", "frontend")


def package(**files):
    """A package as Open VSX serves it: a zip file with the extension in a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


def package_with(name, content, kind, **files):
    """The same, with an entry besides that is no plain file."""
    buffer = io.BytesIO(package(**files))
    with zipfile.ZipFile(buffer, "a") as archive:
        entry = zipfile.ZipInfo(name)
        entry.create_system = 3
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, content)
    return buffer.getvalue()


def digest(data):
    return hashlib.sha256(data).hexdigest()


JAVA = package(**{"extension__package.json": '{"name": "java"}', "extension__out__main.js": "1", "[Content_Types].xml": ""})
YAML = package(**{"extension__package.json": '{"name": "yaml"}'})
NO_EXTENSION = package(readme="nothing")


class OpenVsx(http.server.BaseHTTPRequestHandler):
    """Serves `files`, by path, and remembers what was asked for."""

    files = {}
    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        data = self.files.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_):
        pass


def setUpModule():
    global server
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OpenVsx)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def tearDownModule():
    server.shutdown()
    server.server_close()


class Script(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name)
        OpenVsx.files = {}
        OpenVsx.asked = []
        self.serve("redhat", "java", "1.2.3", JAVA)
        self.serve("redhat", "vscode-yaml", "1.0.0", YAML)

    def serve(self, publisher, name, version, data, published=None):
        file = f"/api/{publisher}/{name}/{version}/file/{publisher}.{name}-{version}"
        OpenVsx.files[f"{file}.vsix"] = data
        OpenVsx.files[f"{file}.sha256"] = (published or digest(data)).encode()

    def write(self, name, *lines):
        self.path.joinpath(name).write_text("".join(f"{line}\n" for line in lines))

    def run_script(self, script, *arguments):
        environment = {"PATH": os.environ["PATH"], "OPEN_VSX_URL": f"http://127.0.0.1:{server.server_port}"}
        return subprocess.run(
            [IMAGES / script, *arguments], cwd=self.path, env=environment, capture_output=True, text=True, timeout=60
        )

    def succeeds(self, *arguments):
        result = self.run_script(*arguments)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        return result.stdout

    def fails(self, message, *arguments):
        result = self.run_script(*arguments)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertEqual(result.stderr.splitlines()[-1], message)
        return result.stderr


class Install(Script):
    def setUp(self):
        super().setUp()
        self.write("in", "# a comment", "redhat.java 1.2.3", "", "redhat.vscode-yaml 1.0.0  # another")
        self.lock(("redhat.java", "1.2.3", digest(JAVA)), ("redhat.vscode-yaml", "1.0.0", digest(YAML)))

    def lock(self, *entries):
        self.write("lock", "# a comment", *(" ".join(entry) for entry in entries))

    def arguments(self):
        return "install-extensions.sh", "lock", "in", "out"

    def installed(self):
        out = self.path / "out"
        return sorted(item.name for item in out.iterdir()) if out.exists() else []

    def test_all_are_checked_and_unpacked(self):
        output = self.succeeds(*self.arguments())
        self.assertTrue(output.endswith("2 extensions in out\n"), output)
        self.assertEqual(self.installed(), ["redhat.java-1.2.3", "redhat.vscode-yaml-1.0.0"])
        files = sorted(str(file.relative_to(self.path / "out")) for file in (self.path / "out").rglob("*") if file.is_file())
        self.assertEqual(
            files, ["redhat.java-1.2.3/out/main.js", "redhat.java-1.2.3/package.json", "redhat.vscode-yaml-1.0.0/package.json"]
        )
        self.assertEqual(
            OpenVsx.asked,
            ["/api/redhat/java/1.2.3/file/redhat.java-1.2.3.vsix", "/api/redhat/vscode-yaml/1.0.0/file/redhat.vscode-yaml-1.0.0.vsix"],
        )

    def test_unpacked_files_can_be_read_by_all_users(self):
        self.succeeds(*self.arguments())
        for file in (self.path / "out").rglob("*"):
            self.assertEqual(file.stat().st_mode & 0o777, 0o755 if file.is_dir() else 0o644, file)

    def test_a_second_run_gives_the_same(self):
        self.succeeds(*self.arguments())
        before = self.installed()
        self.succeeds(*self.arguments())
        self.assertEqual(self.installed(), before)

    def test_another_checksum_is_refused(self):
        self.serve("redhat", "vscode-yaml", "1.0.0", JAVA)
        self.fails(
            f"install-extensions: redhat.vscode-yaml 1.0.0 has SHA-256 {digest(JAVA)}, and lock says {digest(YAML)}:"
            " nothing of it is unpacked",
            *self.arguments(),
        )
        self.assertEqual(self.installed(), ["redhat.java-1.2.3"])

    def test_a_package_that_is_not_there_is_refused(self):
        OpenVsx.files.clear()
        url = f"http://127.0.0.1:{server.server_port}/api/redhat/java/1.2.3/file/redhat.java-1.2.3.vsix"
        self.fails(f"install-extensions: {url} can't be fetched", *self.arguments())
        self.assertEqual(self.installed(), [])

    def test_a_lock_that_is_not_there_is_refused(self):
        for remove in (True, False):
            if remove:
                (self.path / "lock").unlink()
            else:
                self.write("lock")
            self.fails(
                "install-extensions: lock is missing or empty: make it with lock-extensions.sh in lock", *self.arguments()
            )
        self.assertEqual(OpenVsx.asked, [])

    def test_a_list_that_is_not_there_is_refused(self):
        (self.path / "in").unlink()
        message = 'install-extensions: in is missing or empty: it names the extensions, one a line, as "publisher.name version"'
        self.fails(message, *self.arguments())

    def test_an_incomplete_lock_is_refused(self):
        self.lock(("redhat.java", "1.2.2", digest(JAVA)), ("redhat.vscode-yaml", "1.0.0", digest(YAML)))
        said = self.fails(
            "install-extensions: lock does not lock what in names: run lock-extensions.sh in lock", *self.arguments()
        )
        self.assertEqual(said.splitlines()[:2], ["  only in the list: redhat.java 1.2.3", "  only in the lock: redhat.java 1.2.2"])
        self.assertEqual(OpenVsx.asked, [])

    def test_a_wrong_line_is_refused(self):
        rule = "lock has no SHA-256 of 64 lower-case hex digits at the end of the line of redhat.java 1.2.3"
        for entry, message in (
            (("redhat.java", "1.2.3"), rule),
            (("redhat.java", "1.2.3", digest(JAVA)[1:]), rule),
            (("redhat.java", "1.2.3", digest(JAVA).upper()), rule),
            (("redhat.java", "1.2.3", digest(JAVA), "more"), rule),
            (("redhat", "1.2.3", digest(JAVA)), 'lock names "redhat", which is no publisher.name'),
            (("../a.b", "1.2.3", digest(JAVA)), 'lock names "../a.b", which is no publisher.name'),
            (("redhat.java", "../1", digest(JAVA)), 'lock has the version "../1" for redhat.java, which is none'),
            (("redhat.java", "latest", digest(JAVA)), 'lock has the version "latest" for redhat.java, which is none'),
        ):
            with self.subTest(entry):
                self.write("in", " ".join(entry[:2]))
                self.lock(entry)
                self.fails(f"install-extensions: {message}", *self.arguments())
        self.assertEqual(OpenVsx.asked, [])

    def test_an_invalid_extension_is_refused(self):
        for data in (NO_EXTENSION, b"no zip file"):
            self.serve("redhat", "java", "1.2.3", data)
            self.lock(("redhat.java", "1.2.3", digest(data)), ("redhat.vscode-yaml", "1.0.0", digest(YAML)))
            self.fails(
                'install-extensions: redhat.java 1.2.3 is no extension: it can\'t be unpacked, or has no folder "extension"',
                *self.arguments(),
            )
        self.assertEqual(self.installed(), [])

    def test_a_package_cannot_write_elsewhere(self):
        data = package(**{"extension__package.json": "{}", "extension__..__..__..__..__evil": "1", "..__evil": "1"})
        self.serve("redhat", "java", "1.2.3", data)
        self.lock(("redhat.java", "1.2.3", digest(data)), ("redhat.vscode-yaml", "1.0.0", digest(YAML)))
        self.run_script(*self.arguments())
        places = [*self.path.rglob("evil"), *self.path.parent.glob("evil")]
        self.assertLessEqual(set(places), {self.path / "out/redhat.java-1.2.3/evil"})

    def test_a_package_with_links_is_refused(self):
        """A link in a built-in extension leads out of the image, into what a workspace may write."""
        for target in ("/etc/passwd", "../../../../home/coder/evil.js", "package.json"):
            for place in ("extension/link", "extension/out/main.js", "extension/a b"):
                data = package_with(place, target, stat.S_IFLNK, **{"extension__package.json": "{}"})
                self.serve("redhat", "java", "1.2.3", data)
                self.lock(("redhat.java", "1.2.3", digest(data)), ("redhat.vscode-yaml", "1.0.0", digest(YAML)))
                with self.subTest(place):
                    self.fails(
                        f"install-extensions: redhat.java 1.2.3 has {place}, which is neither a file nor a folder:"
                        " nothing of it is installed",
                        *self.arguments(),
                    )
                    self.assertEqual(self.installed(), [])

    def test_a_package_with_one_name_twice_does_not_eat_the_lock(self):
        """Asked whether to replace a file, unzip would take the lock's next lines for an answer: [r]ename, and the name."""
        buffer = io.BytesIO(package(**{"extension__package.json": "{}", "extension__main.js": "1"}))
        with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr("extension/main.js", "2")
        data = buffer.getvalue()
        self.serve("redhat", "java", "1.2.3", data)
        self.serve("redhat", "vscode-xml", "1.0.0", YAML)
        self.write("in", "redhat.java 1.2.3", "redhat.vscode-xml 1.0.0", "redhat.vscode-yaml 1.0.0")
        self.lock(
            ("redhat.java", "1.2.3", digest(data)),
            ("redhat.vscode-xml", "1.0.0", digest(YAML)),
            ("redhat.vscode-yaml", "1.0.0", digest(YAML)),
        )
        self.assertTrue(self.succeeds(*self.arguments()).endswith("3 extensions in out\n"))
        self.assertEqual(
            self.installed(), ["redhat.java-1.2.3", "redhat.vscode-xml-1.0.0", "redhat.vscode-yaml-1.0.0"]
        )

    def test_arguments_are_counted(self):
        self.fails("install-extensions: needs three arguments, LOCK IN FOLDER, and got 1", "install-extensions.sh", "lock")


class Lock(Script):
    def setUp(self):
        super().setUp()
        self.write("in", "# a comment", "redhat.java 1.2.3", "redhat.vscode-yaml 1.0.0")

    def arguments(self):
        return "lock-extensions.sh", "in", "lock"

    def locked(self):
        return [line for line in (self.path / "lock").read_text().splitlines() if not line.startswith("#")]

    def test_the_lock_is_what_the_build_needs(self):
        self.assertTrue(self.succeeds(*self.arguments()).endswith("2 extensions in lock\n"))
        self.assertEqual(self.locked(), [f"redhat.java 1.2.3 {digest(JAVA)}", f"redhat.vscode-yaml 1.0.0 {digest(YAML)}"])
        self.succeeds("install-extensions.sh", "lock", "in", "out")

    def test_a_second_run_gives_the_same(self):
        self.succeeds(*self.arguments())
        before = (self.path / "lock").read_bytes()
        self.succeeds(*self.arguments())
        self.assertEqual((self.path / "lock").read_bytes(), before)

    def test_a_checksum_that_open_vsx_does_not_publish_is_refused(self):
        self.serve("redhat", "java", "1.2.3", JAVA, published=digest(YAML))
        self.fails(
            f"lock-extensions: redhat.java 1.2.3 has SHA-256 {digest(JAVA)}, and Open VSX publishes {digest(YAML)} for it",
            *self.arguments(),
        )
        self.assertFalse((self.path / "lock").exists())

    def test_a_version_that_has_changed_is_refused(self):
        self.write("lock", f"redhat.java 1.2.3 {digest(YAML)}")
        before = (self.path / "lock").read_bytes()
        self.fails(
            f"lock-extensions: redhat.java 1.2.3 has SHA-256 {digest(JAVA)}, and lock says {digest(YAML)}:"
            " a published version has changed",
            *self.arguments(),
        )
        self.assertEqual((self.path / "lock").read_bytes(), before)

    def test_a_new_version_takes_the_old_ones_place(self):
        self.write("lock", f"redhat.java 1.2.2 {digest(YAML)}", f"gone.away 1.0.0 {digest(YAML)}")
        self.succeeds(*self.arguments())
        self.assertEqual([line.split()[:2] for line in self.locked()], [["redhat.java", "1.2.3"], ["redhat.vscode-yaml", "1.0.0"]])

    def test_a_version_that_is_not_there_is_refused(self):
        for missing in (".vsix", ".sha256"):
            self.serve("redhat", "java", "1.2.3", JAVA)
            path = f"/api/redhat/java/1.2.3/file/redhat.java-1.2.3{missing}"
            del OpenVsx.files[path]
            self.fails(f"lock-extensions: http://127.0.0.1:{server.server_port}{path} can't be fetched", *self.arguments())
        self.assertFalse((self.path / "lock").exists())

    def test_a_wrong_line_is_refused(self):
        for line in ("redhat.java", "redhat.java latest", "redhat 1.2.3", "redhat.java 1.2.3 more", "redhat/java 1.2.3", "a.b.c 1.2.3"):
            with self.subTest(line):
                self.write("in", "# a comment", line)
                self.fails(
                    f'lock-extensions: entry 1 of in is "{line}", and has to be "publisher.name version"', *self.arguments()
                )
        self.assertEqual(OpenVsx.asked, [])

    def test_a_name_twice_is_refused(self):
        self.write("in", "redhat.java 1.2.3", "RedHat.java 1.2.2")
        self.fails("lock-extensions: in names RedHat.java twice", *self.arguments())

    def test_a_list_without_entries_is_refused(self):
        self.write("in", "# nothing")
        self.fails("lock-extensions: in names no extension", *self.arguments())
        self.assertFalse((self.path / "lock").exists())

    def test_arguments_are_counted(self):
        self.fails("lock-extensions: needs two arguments, IN LOCK, and got 0", "lock-extensions.sh")


class Files(unittest.TestCase):
    def dockerfile(self, role):
        return (IMAGES / role / "Dockerfile").read_text()

    def arguments(self, role):
        return dict(re.findall(r"^ARG (\w+)=(\S+)$", self.dockerfile(role), re.MULTILINE))

    def entries(self, role, name):
        lines = (IMAGES / role / name).read_text().splitlines()
        return [line.split() for line in lines if line and not line.startswith("#")]

    def test_the_chart_s_script_passes_shellcheck(self):
        """It has no first line to know its shell by, so the look at all scripts leaves it out."""
        command = ["shellcheck", "--shell=sh", CHART / "home.sh"]
        result = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stdout), (0, ""))

    def test_every_base_image_is_pinned(self):
        for role in ROLES:
            images = self.arguments(role)
            stages = re.findall(r"^FROM (\S+)", self.dockerfile(role), re.MULTILINE)
            self.assertGreaterEqual(len(stages), 3)
            for stage in stages:
                self.assertRegex(stage, r"\A\$\{[A-Z_]+\}\Z")
                self.assertRegex(images[stage[2:-1]], r"\A[a-z/-]+:[0-9]+\.[0-9]+\.[0-9]+")
            self.assertNotIn("latest", self.dockerfile(role))

    def test_the_code_server_is_one_everywhere(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        version = chart["appVersion"]
        self.assertRegex(version, r"\A4\.[0-9]+\.[0-9]+\Z")
        for role in ROLES:
            self.assertEqual(self.arguments(role)["CODE_SERVER"], f"codercom/code-server:{version}")
            image = values["images"][role]
            self.assertTrue(image["tag"].startswith(f"{version}-"))
            self.assertIn(f"--tag {image['repository']}:{image['tag']} .", self.dockerfile(role))

    def test_the_roles_have_jdk_21_and_node_22(self):
        self.assertRegex(self.arguments("backend")["JDK"], r":21\.")
        self.assertRegex(self.arguments("frontend")["NODE"], r":22\.")

    def test_no_process_is_root_in_a_workspace(self):
        for role in ROLES:
            text = self.dockerfile(role)
            self.assertEqual(re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1], "1000:1000")
            self.assertIn("find / -xdev -type f -perm /6000 -exec chmod a-s {} +", text)
            self.assertIn("rm -f /etc/sudoers.d/nopasswd", text)

    def test_all_that_is_copied_is_there_and_let_through(self):
        kept = (IMAGES / ".dockerignore").read_text().splitlines()
        self.assertEqual(kept[0], "*")
        copied = 0
        for role in ROLES:
            for line in re.findall(r"^COPY (?!--from)(.+)$", self.dockerfile(role), re.MULTILINE):
                for source in line.split()[:-1]:
                    self.assertTrue((IMAGES / source).is_file(), source)
                    self.assertIn("!" + re.sub(rf"^{role}/", "*/", source), kept)
                    copied += 1
        self.assertEqual(copied, 6)

    def test_every_extension_is_locked(self):
        locked = 0
        for role in ROLES:
            locked_entries = self.entries(role, "extensions.lock")
            self.assertEqual([entry[:2] for entry in locked_entries], self.entries(role, "extensions.in"))
            for entry in locked_entries:
                self.assertRegex(entry[2], r"\A[0-9a-f]{64}\Z")
                locked += 1
        self.assertGreater(locked, 8)
        print(f"\n{locked} extensions locked")

    def test_there_is_nothing_but_text(self):
        files = [file for folder in (IMAGES, CHART) for file in folder.rglob("*") if file.is_file()]
        self.assertGreater(len(files), 20)
        for file in files:
            self.assertNotIn("\0", file.read_text(), file)


if __name__ == "__main__":
    unittest.main(verbosity=2)
