"""The unit for systemd: that it is one, and how much it leaves open."""

import configparser
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

    def test_its_exposure_is_what_it_says(self):
        (noted,) = re.findall(r"# Its exposure is (\d+\.\d+),", UNIT.read_text(encoding="utf-8"))
        found = self.analyze("security", "--offline=true", str(UNIT))
        (exposure,) = re.findall(r"Overall exposure level for kube-coders.service: (\S+)", found.stdout)
        # Other versions weigh a little differently.
        self.assertAlmostEqual(float(exposure), float(noted), delta=0.3)
        print(f"exposure {exposure}")


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
