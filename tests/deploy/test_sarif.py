"""What `kube-coders check --format sarif` prints, against the schema of SARIF 2.1.0.

KUBE_CODERS_SARIF names the folder in which `npm ci` put what sarif/package.json says.
"""

import json
import os
import pathlib
import subprocess
import unittest

import jsonschema

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("KUBE_CODERS_SARIF")
KUBE_CODERS = os.environ.get("KUBE_CODERS", str(ROOT / "target" / "debug" / "kube-coders"))
SCHEMA = "node_modules/@microsoft/jest-sarif/lib/schemas/sarif-2.1.0-rtm.5.json"


@unittest.skipUnless(FOLDER, "KUBE_CODERS_SARIF does not name a folder with the schema")
class Sarif(unittest.TestCase):
    def setUp(self):
        schema = json.loads((pathlib.Path(FOLDER) / SCHEMA).read_text(encoding="utf-8"))
        validator = jsonschema.validators.validator_for(schema)
        self.validator = validator(schema, format_checker=jsonschema.FormatChecker())

    def printed(self, *files):
        command = [KUBE_CODERS, "check", "--format", "sarif", *files]
        done = subprocess.run(command, text=True, capture_output=True, check=False, cwd=ROOT)
        self.assertEqual(done.stderr, "")
        return json.loads(done.stdout)

    def test_findings_are_valid(self):
        found = self.printed("tests/check/original.yaml")
        self.assertGreater(len(found["runs"][0]["results"]), 10)
        self.assertEqual([error.message for error in self.validator.iter_errors(found)], [])
        found["runs"][0]["results"][0]["level"] = "bad"
        self.assertTrue(list(self.validator.iter_errors(found)), "the schema refuses what is wrong")

    def test_no_findings_are_valid_too(self):
        found = self.printed("apisix-conf/standalone/apisix.yaml")
        self.assertEqual(found["runs"][0]["results"], [])
        self.assertEqual([error.message for error in self.validator.iter_errors(found)], [])


if __name__ == "__main__":
    unittest.main()
