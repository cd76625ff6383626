"""benches/compare.py puts the numbers of two programs side by side."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

COMPARE = pathlib.Path(__file__).parents[2] / "benches" / "compare.py"

# Prints a table like the benchmarks do. The number of each run is kept in a file.
PROGRAM = """#!{python}
import pathlib
count = pathlib.Path(__file__ + ".count")
run = int(count.read_text()) if count.exists() else 0
count.write_text(str(run + 1))
print("connections  server  calls/s")
print("  8  a reference  100")
print(f" 32  c user-upstream  {{({values})[run]}}   calls 0.{factor}0")
print("a new token, RS256: {factor}.5 µs CPU a call")
raise SystemExit({code})
"""


class Compare(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def program(self, name, values, factor, code=0):
        path = self.folder / name
        path.write_text(PROGRAM.format(python=sys.executable, values=values, factor=factor, code=code))
        path.chmod(0o755)
        return str(path)

    def compare(self, *args):
        return subprocess.run([sys.executable, COMPARE, *args], capture_output=True, text=True, check=False)

    def test_each_number_has_both_medians_and_their_ratio(self):
        old, new = self.program("old", "1000, 900, 1100", 1), self.program("new", "1500, 2000, 1800", 2, code=1)
        printed = self.compare(old, new, "--runs", "3")
        self.assertEqual(printed.returncode, 0, printed.stderr)
        lines = [" ".join(line.split()) for line in printed.stdout.splitlines()]
        group = "connections server calls/s".replace(" ", "  ")
        place = f"{' '.join(group.split())} | 32 # c user-upstream # calls #"
        self.assertIn(f"1.800 1000 (900 to 1100) 1800 (1500 to 2000) {place} [2]", lines)
        self.assertIn(f"2.000 0.1 (0.1 to 0.1) 0.2 (0.2 to 0.2) {place} [3]", lines)
        tokens = [line for line in lines if "RS256: #" in line]
        self.assertEqual(len(tokens), 1, printed.stdout)
        self.assertTrue(tokens[0].startswith("1.667 1.5 (1.5 to 1.5) 2.5 (2.5 to 2.5)"), tokens)

    def test_a_program_that_fails_ends_the_comparison(self):
        good, bad = self.program("good", "1,", 1), self.program("bad", "1,", 1, code=2)
        printed = self.compare(good, bad, "--runs", "1")
        self.assertEqual(printed.returncode, 1)
        self.assertIn("bad ended with 2", printed.stderr)


if __name__ == "__main__":
    unittest.main()
