"""The guide of examples/kubernetes: what its commands and links name exists, and does what it says."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from kubernetes_manifests import CHART, FOLDER, OTHERWISE, ROOT, Case, find, manifest_files, manifests, read

KUBE_CODERS = os.environ.get("KUBE_CODERS", str(ROOT / "target" / "debug" / "kube-coders"))


class Guide(Case):
    def pages(self):
        return {
            path: path.read_text(encoding="utf-8")
            for path in sorted(FOLDER.rglob("*.md"))
            if CHART not in path.parents and FOLDER / "images" not in path.parents
        }

    def blocks(self):
        """The shell blocks of each page, with lines that go on joined."""
        for path, text in self.pages().items():
            for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
                yield path, block

    def test_every_step_has_its_page(self):
        self.assertEqual(
            {str(path.relative_to(FOLDER)) for path in self.pages()},
            {
                "README.md",
                "operations.md",
                "storage/README.md",
                "tls/README.md",
                "keycloak/README.md",
                "gateway/README.md",
                "coredns/README.md",
            },
        )
        for path, text in self.pages().items():
            self.assertLessEqual(len(text.splitlines()), 250, path)
            if path.name == "README.md" and path.parent.name != "coredns":
                self.assertIn("## When it does not work", text, path)

    def test_files_that_commands_name_exist(self):
        looked_at = []
        for path, block in self.not_empty(self.blocks()):
            block = block.replace("\\\n", " ")
            for word in re.findall(r"(?:@|[\s\"'=]|^)((?:examples|apisix-conf)/[^\s\"'\\$;)]+)", block, re.MULTILINE):
                looked_at.append(word)
                self.assertTrue(list(ROOT.glob(word)), f"{path}: {word}")
        for word in [
            "examples/kubernetes/storage/10-storageclass.yaml",
            "apisix-conf/helm/values-spawned.yaml",
            "examples/kubernetes/charts/workspace",
        ]:
            self.assertIn(word, looked_at)
        print(f"guide: {len(looked_at)} files in commands")

    def test_commands_apply_what_can_be_applied(self):
        applied, values = set(), set()
        for path, block in self.not_empty(self.blocks()):
            for line in block.replace("\\\n", " ").splitlines():
                files = {ROOT / word for word in re.findall(r" -f (\S+\.yaml)", line)}
                folders = {ROOT / word for word in re.findall(r" -k (\S+)", line)}
                if line.startswith("helm"):
                    values |= files
                else:
                    applied |= files | {folder / "kustomization.yaml" for folder in folders}
        for file in self.not_empty(values):
            self.assertTrue(
                file.is_relative_to(ROOT / "apisix-conf/helm")
                or OTHERWISE.get(str(file.relative_to(FOLDER))) == "values",
                file,
            )
        by_kustomize = {
            FOLDER / "keycloak" / name
            for name in yaml.safe_load(read("examples/kubernetes/keycloak/kustomization.yaml"))["resources"]
        }
        # No manifest is left out: each is applied by a command, or named for a way that is not the guide's own.
        for file in self.not_empty(manifest_files()):
            if FOLDER in file.parents and file not in applied | by_kustomize:
                named = [
                    path for path, text in self.pages().items() if f"({os.path.relpath(file, path.parent)})" in text
                ]
                self.assertTrue(named, f"{file} is in no command and in no page")

    def test_values_that_commands_set_are_the_charts(self):
        chart = yaml.safe_load(read("examples/kubernetes/charts/workspace/values.yaml"))
        looked_at = []
        for path, block in self.not_empty(self.blocks()):
            for command in re.findall(r"^ *helm upgrade .*charts/workspace.*$", block.replace("\\\n", " "), re.MULTILINE):
                for key in re.findall(r"--set(?:-string)? ([\w.]+)=", command):
                    looked_at.append(key)
                    value = chart
                    for part in key.split("."):
                        self.assertIn(part, value, f"{path}: {key}")
                        value = value[part]
        self.assertGreater(len(set(looked_at)), 5)

    def test_links_lead_somewhere(self):
        looked_at = 0
        for path, text in self.pages().items():
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if target.startswith("http"):
                    continue
                looked_at += 1
                file, _, anchor = target.partition("#")
                page = (path.parent / file).resolve() if file else path
                self.assertTrue(page.exists(), f"{path}: {target}")
                if anchor:
                    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
                    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                    self.assertIn(anchor, anchors, f"{path}: {target}")
        self.assertGreater(looked_at, 40)

    def test_commands_are_shell(self):
        shellcheck = shutil.which("shellcheck")
        for path, block in self.not_empty(self.blocks()):
            with self.subTest(path=str(path), block=block[:60]):
                parsed = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
                self.assertEqual(parsed.returncode, 0, parsed.stderr)
                if shellcheck:
                    # A block goes on from the one before: variables, functions and stopping there are not its own.
                    found = subprocess.run(
                        [shellcheck, "--shell=bash", "--exclude=SC2154,SC2034,SC2119,SC2120", "-"],
                        input=block,
                        text=True,
                        capture_output=True,
                        check=False,
                    )
                    self.assertEqual(found.returncode, 0, found.stdout)

    def test_objects_that_commands_name_are_in_the_tree(self):
        kinds = {
            "deployment": "Deployment",
            "statefulset": "StatefulSet",
            "pod": "Pod",
            "pvc": "PersistentVolumeClaim",
            "volumesnapshot": "VolumeSnapshot",
            "certificate": "Certificate",
        }
        # Made by charts and by Kubernetes.
        elsewhere = {("apisix", "deployment", "apisix"), ("kube-system", "deployment", "snapshot-controller")}
        everything = {
            (item["metadata"].get("namespace"), item["kind"], item["metadata"]["name"]) for _, item in manifests()
        }
        looked_at = 0
        for path, block in self.not_empty(self.blocks()):
            for namespace, rest in re.findall(r"kubectl -n (\S+) ([^|;&\n]*(?:\\\n[^|;&\n]*)*)", block):
                for kind, name in re.findall(r"\b(%s)/([a-z][-a-z0-9]*)" % "|".join(kinds), rest):
                    looked_at += 1
                    self.assertTrue(
                        (namespace, kinds[kind], name) in everything or (namespace, kind, name) in elsewhere,
                        f"{path}: {namespace} {kind}/{name}",
                    )
        self.assertGreater(looked_at, 15)

    def test_the_table_of_versions_is_true(self):
        readme = read("examples/kubernetes/README.md")
        rows = re.findall(
            r"^\| ([^|]+) \| ([^|]+) \| (\[[^|]+) \|$",
            readme[readme.index("**Versions**") : readme.index("## 1.")],
            re.MULTILINE,
        )
        looked_at = 0
        for what, versions, places in self.not_empty(rows):
            if versions.startswith("with"):
                continue
            files = []
            for target in re.findall(r"\]\(([^)]+)\)", places):
                place = FOLDER / target
                files += [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
            for version in versions.split(", "):
                looked_at += 1
                self.assertTrue(
                    [file for file in files if version in file.read_text(encoding="utf-8")], f"{what} {version}"
                )
        self.assertGreaterEqual(looked_at, 8)
        # And no command has another one.
        for path, block in self.blocks():
            for version in re.findall(r"--version (\S+)", block):
                self.assertIn(version, readme, path)

    def test_names_are_replaced_by_the_guides_own_command(self):
        (command,) = [block for path, block in self.blocks() if "xargs sed" in block]
        with tempfile.TemporaryDirectory() as folder:
            for part in ("apisix-conf", "examples/kubernetes"):
                shutil.copytree(ROOT / part, pathlib.Path(folder) / part)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command], cwd=folder, text=True, capture_output=True, check=False
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            left, files = set(), 0
            for path in pathlib.Path(folder).rglob("*"):
                if path.is_file():
                    files += 1
                    text = path.read_text(encoding="utf-8")
                    left |= set(re.findall(r"[-\w.@]*example\.com", text))
                    # But for the check that nothing is left.
                    self.assertNotIn("example\\.com", text.replace("`grep -rn 'example\\.com'", ""), path)
                    self.assertNotIn("192.0.2.0/24", text, path)
                    if path.suffix == ".yaml" and "templates" not in path.parts:
                        list(yaml.safe_load_all(text))
            self.assertGreater(files, 40)
            self.assertEqual(left, {"alice@example.com", "bob@example.com"})
            # Written once, it stays as it was: another name can still be put in.
            self.assertIn(command, (pathlib.Path(folder) / "examples/kubernetes/README.md").read_text())
            self.assertIn(
                "^key\\.your\\.domain\\.$", (pathlib.Path(folder) / "examples/kubernetes/coredns/README.md").read_text()
            )

    def test_a_probe_that_has_ended_is_no_proof(self):
        """A check from the probe waits for it before, and the probe lives until it is deleted."""
        for namespace, name in [("default", "probe"), ("code-server", "target")]:
            spec = find("Pod", name, namespace)["spec"]
            self.assertEqual(spec["restartPolicy"], "Always")
            self.assertNotIn("activeDeadlineSeconds", spec)
        looked_at = 0
        for path, text in self.pages().items():
            if "exec probe --" in text:
                looked_at += 1
                before = text[: text.index("exec probe --")]
                self.assertIn("-n default wait pod/probe --for=condition=Ready", before, path)
                self.assertIn("kubernetes/workspaces/20-probe.yaml", before, path)
        self.assertGreaterEqual(looked_at, 4)
        self.assertIn("kubectl -n default delete pod/probe", read("examples/kubernetes/README.md"))

    def test_the_dashboards_service_gets_the_authority(self):
        """The command of the gateway's page makes of the shared service the one of this guide, once."""
        (block,) = [block for path, block in self.blocks() if "grep -q ca_file" in block]
        command = re.search(r"^grep -q.*?\n.*?$", block, re.MULTILINE).group(0)
        name = "apisix-conf/admin-api/service.json"
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / name
            copy.parent.mkdir(parents=True)
            shutil.copy(ROOT / name, copy)
            for _ in range(2):
                subprocess.run(["bash", "-euc", command], cwd=folder, check=True)
            made = json.loads(copy.read_text())["plugins"]["ext-plugin-pre-req"]["conf"]
        (service,) = yaml.safe_load(read("examples/kubernetes/gateway/apisix.yaml"))["services"]
        (wanted,) = service["plugins"]["ext-plugin-pre-req"]["conf"]
        self.assertEqual([json.loads(conf["value"]) for conf in made], [json.loads(wanted["value"])])

    def test_the_guide_decides_as_the_program_does(self):
        """`kube-coders explain` as step 7 has it, for the subject of step 6."""
        steps = [block for path, block in self.blocks() if path == FOLDER / "README.md"]
        (explain,) = [block for block in steps if block.startswith("kube-coders explain")]
        (install,) = [block for block in steps if "helm upgrade --install" in block]
        subject = re.search(r"^alice=(\S+)$", install, re.MULTILINE).group(1)
        done = subprocess.run(
            ["bash", "-c", f'kube-coders() {{ "{KUBE_CODERS}" "$@"; }}; alice={subject}; {explain}'],
            text=True,
            capture_output=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"http://code-{subject}.code-server.svc.cluster.local:8443", done.stdout)


if __name__ == "__main__":
    unittest.main()
