"""The check of commit subjects."""

import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Commits(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("base subjects are not looked at, however long they are and whatever they end with.")
        self.base = self.git("rev-parse", "HEAD").strip()

    def git(self, *words):
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", self.folder, *identity, *words]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout

    def commit(self, subject):
        self.git("commit", "--quiet", "--allow-empty", "--message", subject)

    def check(self, base=None):
        command = [ROOT / ".ci" / "commits.sh", base or self.base]
        done = subprocess.run(command, cwd=self.folder, check=False, text=True, capture_output=True)
        return done.returncode, done.stdout + done.stderr

    def test_good_subjects_pass(self):
        for subject in ["Add a check", "Process frames in order", "Speed up " + "x" * 63, "Embed the page"]:
            self.commit(subject)
        self.assertEqual(self.check(), (0, ""))

    def test_each_kind_of_bad_subject_is_found(self):
        for subject, what in [
            ("Speed up " + "x" * 64, "73 characters, of at most 72"),
            ("add a check", "begins with no capital letter"),
            ("Add a check.", "ends with a full stop"),
            ("Added a check", "not in the imperative: Added"),
            ("Adding a check", "not in the imperative: Adding"),
            ("Adds a check", "not in the imperative: Adds"),
            ("Forwarder: add a check", "begins with a place"),
        ]:
            with self.subTest(subject):
                self.commit(subject)
                code, output = self.check(self.git("rev-parse", "HEAD~1").strip())
                self.assertEqual(code, 1)
                self.assertIn(what, output)

    def test_a_merge_is_found(self):
        self.git("checkout", "--quiet", "-b", "side")
        self.commit("Add one")
        self.git("checkout", "--quiet", "main")
        self.commit("Add two")
        self.git("merge", "--quiet", "--no-ff", "--message", "Bring in side", "side")
        code, output = self.check()
        self.assertEqual((code, output.count("\n")), (1, 1), output)
        self.assertIn("is a merge", output)

    def test_without_the_base_the_last_commit_is_looked_at(self):
        self.commit("added one.")
        self.commit("Add two")
        code, output = self.check("0" * 40)
        self.assertEqual(code, 0, output)
        self.assertIn("only the last commit", output)


if __name__ == "__main__":
    unittest.main()
