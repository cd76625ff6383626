"""The version of kube-coders: where an image is named, it is the one of Cargo.toml."""

import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The image's tag, in whatever registry; a path or a number behind the colon is none (/etc/passwd, "kube-coders: ").
IMAGE = re.compile(r"(?<![\w.-])(?:[\w.-]+(?::\d+)?/)*kube-coders:(v?\d[\w.+-]*|latest)")


def files():
    """What git has or would add."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        text=True,
        capture_output=True,
        check=True,
    )
    found = [ROOT / path for path in listed.stdout.split("\0") if path]
    return [path for path in found if path.is_file() and path != pathlib.Path(__file__).resolve()]


class Version(unittest.TestCase):
    def version(self):
        (version,) = re.findall(r'^version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(encoding="utf-8"), re.MULTILINE)[:1]
        return version

    def test_every_image_of_kube_coders_has_the_projects_version(self):
        found = []
        for path in files():
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            for image in IMAGE.finditer(text):
                line = text.count("\n", 0, image.start()) + 1
                found.append((f"{path.relative_to(ROOT)}:{line}", image[1].rstrip(".")))
        self.assertEqual([one for one in found if one[1] != self.version()], [])
        named = {place.rpartition(":")[0] for place, _ in found}
        for path in ("README.md", "examples/compose/compose.yaml", "apisix-conf/helm/values-beside.yaml"):
            self.assertIn(path, named)
        self.assertGreaterEqual(len(named), 7)
        print(f"images of kube-coders: {len(found)} in {len(named)} files, all {self.version()}")

    def test_each_reference_to_an_image_is_seen(self):
        for text, version in (
            ("image: kube-coders:0.1.0", "0.1.0"),
            ("image: registry.example.com/kube-coders/kube-coders:0.2.0-rc.1", "0.2.0-rc.1"),
            ("localhost:5000/kube-coders:latest", "latest"),
            ('"kube-coders:v1"', "v1"),
        ):
            self.assertEqual([image[1] for image in IMAGE.finditer(text)], [version], text)
        for text in ("kube-coders: it listens", "kube-coders:x:636:636", "kube-coders/subject: a", "my-kube-coders:1.0"):
            self.assertEqual(IMAGE.findall(text), [], text)


if __name__ == "__main__":
    unittest.main()
