"""The step runner of .ci/run: what fails is named, and fails the run."""

import os
import pathlib
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(script, minutes=5):
    """Runs `script` with the step runner; returns the exit code and the output."""
    with tempfile.TemporaryDirectory() as folder:
        whole = f"""
            set -euo pipefail
            source {ROOT}/.ci/stepper.sh
            start_steps {folder}/steps {minutes}
            trap end_steps EXIT
            {script}
            print_steps
        """
        done = subprocess.run(["bash", "-c", whole], text=True, capture_output=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr


def table(output):
    """The table's rows: the name and what became of it."""
    lines = output.split("may take  result\n")[1].splitlines()
    rows = {}
    for line in lines:
        name, times = line[:44].strip(), line[44:].split(maxsplit=2)
        rows[name] = times[2] if len(times) > 2 else ""
    return rows


class Steps(unittest.TestCase):
    def test_a_run_whose_steps_go_well_goes_well(self):
        code, output = run("one() { echo said; }; two() { :; }; step one 1 one; step 'the second' 2 two one")
        self.assertEqual(code, 0, output)
        self.assertEqual(table(output), {"one": "ok", "the second": "ok", "all, some side by side": ""})
        self.assertIn("== one\nsaid\n", output)

    def test_a_step_that_fails_fails_the_run_and_is_named(self):
        code, output = run("bad() { false; echo never; }; good() { :; }; step bad 1 bad; step good 1 good")
        self.assertEqual(code, 1, output)
        self.assertEqual(table(output)["bad"], "FAILED with 1")
        self.assertEqual(table(output)["good"], "ok")
        self.assertNotIn("never", output)

    def test_a_pipe_that_fails_and_a_missing_variable_fail_the_step(self):
        code, output = run("""
            pipe() { (exit 3) | cat; }; unset() { echo "$gone"; }
            step pipe 1 pipe; step unset 1 unset""")
        self.assertEqual((code, table(output)["pipe"]), (1, "FAILED with 3"), output)
        self.assertIn("FAILED", table(output)["unset"])

    def test_steps_that_need_a_failed_step_are_left_out_transitively(self):
        code, output = run("""
            bad() { exit 7; }; good() { echo ran; }
            step a 1 bad; step b 1 good a; step c 1 good b; step d 1 good; step e 1 good d""")
        self.assertEqual(code, 1)
        rows = table(output)
        self.assertEqual(rows["b"], 'left out: it needs "a"')
        self.assertEqual(rows["c"], 'left out: it needs "b"')
        self.assertEqual((rows["d"], rows["e"], output.count("ran\n")), ("ok", "ok", 2), output)

    def test_a_step_that_needs_one_that_did_not_run_is_left_out(self):
        code, output = run("good() { :; }; step b 1 good a")
        self.assertEqual((code, table(output)["b"]), (1, 'left out: it needs "a"'), output)

    def test_tracks_run_side_by_side_and_their_steps_are_in_the_table(self):
        # Each waits for the other one.
        code, output = run("""
            fifo=$(mktemp -u); mkfifo "$fifo"
            here() { cat "$fifo"; }; there() { echo met >"$fifo"; }
            beside() { step there 1 there; step more 1 bad; }; bad() { echo words; false; }
            track side beside; step here 1 here; join side; rm "$fifo" """)
        self.assertEqual(code, 1)
        rows = table(output)
        self.assertEqual((rows["here"], rows["there"], rows["more"]), ("ok", "ok", "FAILED with 1"), output)
        self.assertIn("== in parallel: side\n\n== there\n\n== more\nwords\n", output)

    def test_a_slow_step_is_reported_and_does_not_fail(self):
        code, output = run("slow() { :; }; step slow -1 slow")
        self.assertEqual((code, table(output)["slow"]), (0, "ok, but slower than it may be"), output)

    def test_a_timeout_ends_running_steps_with_their_children(self):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            os.mkfifo(f"{folder}/on")
            code, output = run(f"""
                hang() {{ sleep 1000 & echo $! >{folder}/pid; echo on >{folder}/on; wait; }}
                beside() {{ step 'a track' 1 hang; }}
                late() {{ read -r _ <{folder}/on; touch "$steps_folder/late"; kill -TERM $$; sleep 1000; }}
                track side beside; step hang 1 late; step after 1 hang; join side""")
            pid = pathlib.Path(folder, "pid").read_text(encoding="ascii").strip()
        self.assertEqual(code, 1, output)
        rows = table(output)
        self.assertIn("ended after", rows["hang"])
        self.assertIn("ended after", rows["a track"])
        self.assertEqual(rows["after"], "left out: no time was left")
        self.assertLess(time.monotonic() - began, 30)
        # Gone, or a zombie that init has not collected.
        status = pathlib.Path("/proc", pid, "stat")
        self.assertTrue(not status.exists() or ") Z " in status.read_text(encoding="ascii"))


if __name__ == "__main__":
    unittest.main()
