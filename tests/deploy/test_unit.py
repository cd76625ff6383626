"""The unit for systemd: that it is one, and how much it leaves open."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNIT = ROOT / "apisix-conf" / "standalone" / "kube-coders.service"


@unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
class Unit(unittest.TestCase):
    def analyze(self, *args):
        command = ["systemd-analyze", "--no-pager", *args]
        return subprocess.run(command, text=True, capture_output=True, check=False, timeout=60)

    def test_systemd_understands_every_line(self):
        with tempfile.TemporaryDirectory() as folder:
            # It wants the program to be there.
            program = pathlib.Path(folder) / "kube-coders"
            program.touch(0o755)
            text = UNIT.read_text(encoding="utf-8").replace("/opt/kube-coders/kube-coders", str(program))
            unit = pathlib.Path(folder) / UNIT.name
            unit.write_text(text, encoding="utf-8")
            verified = self.analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
            self.assertEqual((verified.returncode, verified.stderr), (0, ""))
            unit.write_text(text.replace("ProtectProc=", "ProtectProcc="), encoding="utf-8")
            verified = self.analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
            self.assertIn("ProtectProcc", verified.stderr)

    def test_the_unit_states_its_exposure(self):
        (noted,) = re.findall(r"an exposure of (\d+\.\d+)\.", UNIT.read_text(encoding="utf-8"))
        found = self.analyze("security", "--offline=true", str(UNIT))
        (exposure,) = re.findall(r"Overall exposure level for kube-coders.service: (\S+)", found.stdout)
        # Other versions weigh a little differently.
        self.assertAlmostEqual(float(exposure), float(noted), delta=0.3)
        print(f"exposure {exposure}")


class Start(unittest.TestCase):
    """The script of the guide that starts the gateway with its secrets."""

    FILES = {
        "SESSION_SECRET": "session-secret",
        "KEYCLOAK_CLIENT_SECRET": "client-secret",
        "CODERS_TLS_CERT": "coders.crt",
        "CODERS_TLS_KEY": "coders.key",
    }

    def setUp(self):
        text = (UNIT.parent / "README.md").read_text(encoding="utf-8")
        (script,) = re.findall(r"^sudo install -m 700 /dev/stdin /etc/apisix/start <<'END'\n(.*?)^END$", text, re.M | re.S)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for variable, name in self.FILES.items():
            (self.folder / name).write_text(f"of {variable}\nin two lines\n")
        self.script = self.folder / "start"
        self.script.write_text(script)
        self.script.chmod(0o700)

    def start(self):
        command = [self.script, "env", "--null"]
        return subprocess.run(command, text=True, capture_output=True, check=False, env={"PATH": os.environ["PATH"]})

    def test_a_started_program_has_all_four_unchanged(self):
        config = (UNIT.parent / "config.yaml").read_text(encoding="utf-8")
        started = self.start()
        self.assertEqual(started.returncode, 0, started.stderr)
        for variable in self.FILES:
            self.assertIn(f"- {variable}\n", config)
            self.assertIn(f"{variable}=of {variable}\nin two lines\0", started.stdout)

    def test_it_starts_nothing_without_one_of_them(self):
        for name in self.FILES.values():
            for spoil in (lambda path: path.write_text(""), pathlib.Path.unlink):
                with self.subTest(name):
                    before = (self.folder / name).read_text()
                    spoil(self.folder / name)
                    started = self.start()
                    self.assertNotEqual(started.returncode, 0)
                    self.assertEqual(started.stdout, "")
                    (self.folder / name).write_text(before)


class Folder(unittest.TestCase):
    def test_the_socket_is_where_the_gateway_looks(self):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str
        unit.read(UNIT, encoding="utf-8")
        self.assertEqual(unit["Service"]["RuntimeDirectory"], "kube-coders")
        config = (ROOT / "apisix-conf/standalone/config.yaml").read_text(encoding="utf-8")
        self.assertIn("path_for_test: /run/kube-coders/runner.sock", config)


if __name__ == "__main__":
    unittest.main()
