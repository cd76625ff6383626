"""Every YAML file and every shell script of the project; and examples/kubernetes' scripts, run."""

import base64
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile
import textwrap
import unittest

import yamllint.config
import yamllint.linter

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "examples" / "kubernetes"
HOSTS = ["coders.example.com", "key.example.com"]
# Not run by themselves but put into something: where, and in which language.
FRAGMENTS = {"examples/kubernetes/charts/workspace/home.sh": "sh"}


def run(*command, **options):
    return subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False, **options)


def files():
    """What git has or would add, as paths below the root."""
    listed = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode != 0:
        raise AssertionError(f"git ls-files: {listed.stderr}")
    return sorted({path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()})


def scripts():
    """All shell scripts, by their first line or their name."""
    for path in files():
        first = (ROOT / path).read_bytes().split(b"\n", 1)[0]
        if path.endswith(".sh") or re.match(rb"#!.*\b(ba)?sh\b", first):
            yield path


class Yaml(unittest.TestCase):
    def test_every_file_passes_yamllint(self):
        config = yamllint.config.YamlLintConfig(file=str(ROOT / ".yamllint"))
        looked_at, problems = [], []
        for path in files():
            if config.is_yaml_file(path) and not config.is_file_ignored(path):
                looked_at.append(path)
                text = (ROOT / path).read_text(encoding="utf-8")
                problems += [f"{path}:{found}" for found in yamllint.linter.run(text, config, path)]
        self.assertEqual(problems, [])
        self.assertIn("apisix-conf/standalone/apisix.yaml", looked_at)
        self.assertFalse([path for path in looked_at if "/templates/" in path])
        print(f"yamllint: {len(looked_at)} files")

    def test_yamllint_finds_what_it_is_configured_to_find(self):
        config = yamllint.config.YamlLintConfig(file=str(ROOT / ".yamllint"))
        for text in ["a: 1\na: 2\n", "a: [1,2]\n", "a: yes\n", "a: " + "b " * 70 + "\n", "a:\t1\n", "a: 1"]:
            with self.subTest(text):
                self.assertTrue(list(yamllint.linter.run(text, config)))


class Scripts(unittest.TestCase):
    def test_every_script_passes_shellcheck(self):
        shellcheck = shutil.which("shellcheck")
        looked_at = list(scripts())
        self.assertIn(".ci/run", looked_at)
        if not shellcheck:
            if os.environ.get("KUBE_CODERS_NO_SKIP"):
                self.fail("shellcheck is not installed")
            self.skipTest(f"shellcheck is not installed: {len(looked_at)} scripts were not checked")
        for path in looked_at:
            with self.subTest(path):
                shell = ["--shell", FRAGMENTS[path]] if path in FRAGMENTS else []
                found = run(shellcheck, *shell, ROOT / path)
                self.assertEqual(found.returncode, 0, found.stdout + found.stderr)
        print(f"shellcheck: {len(looked_at)} scripts")

    def test_every_script_is_executable_and_stops_at_the_first_error(self):
        looked_at = [path for path in scripts() if path not in FRAGMENTS]
        self.assertTrue(looked_at)
        for path in looked_at:
            with self.subTest(path):
                text = (ROOT / path).read_text(encoding="utf-8")
                self.assertTrue(os.access(ROOT / path, os.X_OK), "not executable")
                commands = [line for line in text.splitlines() if line and not line.startswith("#")]
                # A plain sh knows no pipefail.
                stops = {"#!/usr/bin/env bash": "set -euo pipefail", "#!/bin/sh": "set -eu"}
                self.assertEqual(commands[0], stops[text.splitlines()[0]])


class Folder(unittest.TestCase):
    """A test with a folder of its own, and with stand-ins in PATH."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="kube-coders-scripts-")
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def put(self, name, text):
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        path.chmod(0o755)

    def environment(self, **more):
        return {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FOLDER": str(self.folder), **more}


@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
class Certificates(Folder):
    def call(self, *arguments, folder=None):
        return run(KUBERNETES / "tls" / "certificates.sh", folder or self.folder / "tls", *arguments)

    def contents(self):
        return {path.name: path.read_bytes() for path in (self.folder / "tls").iterdir()}

    def verify(self, host, certificate):
        tls = self.folder / "tls"
        return run("openssl", "verify", "-CAfile", tls / "ca.crt", "-verify_hostname", host, tls / f"{certificate}.crt")

    def test_each_host_has_a_certificate_that_the_authority_vouches_for(self):
        made = self.call()
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(made.stdout.count("made "), 3)
        for host in HOSTS:
            found = self.verify(host, host)
            self.assertEqual(found.returncode, 0, found.stdout + found.stderr)
            for other in [other for other in HOSTS if other != host]:
                self.assertNotEqual(self.verify(other, host).returncode, 0)
            text = run("openssl", "x509", "-in", self.folder / "tls" / f"{host}.crt", "-noout", "-text").stdout
            self.assertIn("TLS Web Server Authentication", text)
            self.assertIn(f"DNS:{host}\n", text)
            self.assertIn("CA:FALSE", text)

    def test_a_second_run_changes_nothing(self):
        self.call()
        before = self.contents()
        again = self.call()
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(again.stdout.count("kept "), 3)
        self.assertNotIn("made", again.stdout)
        self.assertEqual(self.contents(), before)
        self.assertEqual(
            sorted(before), sorted(["ca.crt", "ca.key"] + [f"{h}.{e}" for h in HOSTS for e in ("crt", "key")])
        )

    def test_keys_are_their_owners_alone(self):
        self.call()
        keys = sorted((self.folder / "tls").glob("*.key"))
        self.assertEqual(len(keys), 3)
        for key in keys:
            self.assertEqual(stat.S_IMODE(key.stat().st_mode), 0o600, key)
        self.assertEqual(stat.S_IMODE((self.folder / "tls").stat().st_mode), 0o700)

    def test_a_key_is_not_written_where_others_read(self):
        """A file that is there keeps its mode, and who has it open reads what is written into it."""
        tls = self.folder / "tls"
        tls.mkdir()
        opened = {}
        for name in ["ca", *HOSTS]:
            path = tls / f"{name}.key.new"
            path.touch(0o644)
            opened[name] = path.open()
        self.assertEqual(self.call().returncode, 0)
        for name, file in opened.items():
            with file:
                self.assertEqual(file.read(), "", name)
        before = self.contents()
        for name in HOSTS:
            (tls / f"{name}.crt").unlink()
            (tls / f"{name}.key").chmod(0o644)
        with (tls / f"{HOSTS[0]}.key").open() as file:
            self.assertEqual(self.call().returncode, 0)
            self.assertEqual(file.read().encode(), before[f"{HOSTS[0]}.key"])
        self.assertNotEqual(self.contents()[f"{HOSTS[0]}.key"], before[f"{HOSTS[0]}.key"])
        for name in ["ca", *HOSTS]:
            self.assertEqual(stat.S_IMODE((tls / f"{name}.key").stat().st_mode), 0o600)
        self.assertFalse(list(tls.glob("*.new")))

    def test_a_missing_certificate_or_one_of_another_key_is_made_again(self):
        self.call()
        before = self.contents()
        (self.folder / "tls" / "key.example.com.crt").unlink()
        (self.folder / "tls" / "coders.example.com.key").write_bytes(before["key.example.com.key"])
        again = self.call()
        self.assertEqual(again.stdout.count("made "), 2, again.stderr)
        for host in HOSTS:
            self.assertEqual(self.verify(host, host).returncode, 0)
        self.assertEqual(self.contents()["ca.crt"], before["ca.crt"])

    def test_a_certificate_that_ends_soon_is_made_again(self):
        self.call()
        tls = self.folder / "tls"
        request = run("openssl", "req", "-new", "-key", tls / "key.example.com.key", "-subj", "/CN=key.example.com")
        signed = run(
            "openssl",
            "x509",
            "-req",
            "-CA",
            tls / "ca.crt",
            "-CAkey",
            tls / "ca.key",
            "-set_serial",
            "7",
            "-days",
            "20",
            "-extfile",
            "/dev/stdin",
            "-in",
            self.write("request", request.stdout),
            input="subjectAltName=DNS:key.example.com",
        )
        self.assertEqual(signed.returncode, 0, signed.stderr)
        (tls / "key.example.com.crt").write_text(signed.stdout)
        self.assertEqual(self.verify("key.example.com", "key.example.com").returncode, 0)
        again = self.call()
        self.assertIn("kept    " + str(tls / "coders.example.com.crt"), again.stdout)
        self.assertIn("made    " + str(tls / "key.example.com.crt"), again.stdout)

    def write(self, name, text):
        (self.folder / name).write_text(text)
        return self.folder / name

    def test_the_authority_vouches_for_no_other_host(self):
        self.call()
        before = self.contents()
        refused = self.call("other.example.com")
        self.assertEqual(refused.returncode, 1)
        self.assertIn('may not vouch for "other.example.com"', refused.stderr)
        self.assertEqual(self.contents(), before)

    def test_it_writes_nothing_into_the_project(self):
        refused = self.call(folder=KUBERNETES / "tls" / "out")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("is inside the project", refused.stderr)
        self.assertFalse((KUBERNETES / "tls" / "out").exists())

    def test_error_messages_name_the_mistake(self):
        self.assertIn("no folder given", run(KUBERNETES / "tls" / "certificates.sh").stderr)
        self.assertIn('host "Key.example.com" is no DNS name', self.call("Key.example.com").stderr)
        self.assertIn('host "a,DNS:b.c" is no DNS name', self.call("a,DNS:b.c").stderr)
        self.call()
        (self.folder / "tls" / "ca.key").unlink()
        self.assertIn("found only one of", self.call().stderr)


# Keeps Secrets as folders of files, and knows two namespaces.
KUBECTL_SECRETS = """\
    #!/usr/bin/env bash
    set -euo pipefail
    echo "$*" >>"$FOLDER/calls"
    if [ -f "$FOLDER/unreachable" ]; then echo "Unable to connect to the server" >&2; exit 1; fi
    if [ "$1 $2" = "get namespace" ]; then
      [ -d "$FOLDER/$3" ] || { echo "Error from server (NotFound): namespaces \\"$3\\" not found" >&2; exit 1; }
      exit
    fi
    [ "$1" = --namespace ]
    namespace=$2 verb=$3
    shift 3
    case "$verb" in
      get)
        if [ -f "$FOLDER/forbidden" ]; then echo "Error from server (Forbidden): secrets is forbidden" >&2; exit 1; fi
        if [ ! -d "$FOLDER/$namespace/$2" ]; then [[ " $* " = *" --ignore-not-found "* ]]; exit; fi
        for argument in "$@"; do
          case "$argument" in
            name) echo "secret/$2" ;;
            jsonpath=*)
              key=${argument#jsonpath=\\{.data.}
              file=$FOLDER/$namespace/$2/${key%\\}}
              # As kubectl does, nothing for a key that is not there.
              if [ -f "$file" ]; then base64 -w0 "$file"; fi
              ;;
          esac
        done
        ;;
      create)
        mkdir "$FOLDER/$namespace/$3"
        for argument in "${@:4}"; do cp "${argument#--from-file=}" "$FOLDER/$namespace/$3/"; done
        ;;
      label) ;;
      *) exit 9 ;;
    esac
"""


class Secrets(Folder):
    def setUp(self):
        super().setUp()
        self.put("kubectl", KUBECTL_SECRETS)
        for namespace in ("keycloak", "apisix"):
            (self.folder / namespace).mkdir()

    def call(self):
        return run(KUBERNETES / "secrets.sh", env=self.environment())

    def contents(self):
        return {
            str(path.relative_to(self.folder)): path.read_text()
            for namespace in ("keycloak", "apisix")
            for path in (self.folder / namespace).rglob("*")
            if path.is_file()
        }

    def test_they_are_made_once_and_fit_together(self):
        made = self.call()
        self.assertEqual(made.returncode, 0, made.stderr)
        found = self.contents()
        self.assertEqual(
            sorted(found),
            [
                "apisix/apisix-admin-key/admin",
                "apisix/apisix-admin-key/viewer",
                "apisix/kube-coders-gateway/KEYCLOAK_CLIENT_SECRET",
                "apisix/kube-coders-gateway/SESSION_SECRET",
                "apisix/kube-coders-gateway/SUBJECT_KEY",
                "keycloak/keycloak/admin-password",
                "keycloak/keycloak/client-secret",
                "keycloak/keycloak/postgres-password",
            ],
        )
        for name, value in found.items():
            self.assertRegex(value, r"\A[0-9a-f]{64}\Z", name)
        self.assertEqual(
            found["apisix/kube-coders-gateway/KEYCLOAK_CLIENT_SECRET"], found["keycloak/keycloak/client-secret"]
        )
        # That one twice, and no other.
        self.assertEqual(len(set(found.values())), len(found) - 1)
        again = self.call()
        self.assertEqual(again.stdout.count("kept "), 3, again.stderr)
        self.assertNotIn("made", again.stdout)
        self.assertEqual(self.contents(), found)

    def test_no_value_is_an_argument_or_printed(self):
        made = self.call()
        seen = made.stdout + made.stderr + (self.folder / "calls").read_text()
        self.assertTrue(self.contents())
        for name, value in self.contents().items():
            self.assertNotIn(value, seen, name)

    def test_a_gateway_with_another_client_secret_is_reported(self):
        self.call()
        (self.folder / "apisix/kube-coders-gateway/KEYCLOAK_CLIENT_SECRET").write_text("another")
        refused = self.call()
        self.assertEqual(refused.returncode, 1)
        self.assertIn("is not client-secret of secret/keycloak", refused.stderr)

    def test_no_secret_is_made_of_nothing(self):
        """The gateway would log in with an empty client secret, and sign sessions with an empty one."""
        self.call()
        whole = self.contents()
        needed = {
            "keycloak/keycloak": ["client-secret", "admin-password", "postgres-password"],
            "apisix/kube-coders-gateway": ["KEYCLOAK_CLIENT_SECRET", "SESSION_SECRET", "SUBJECT_KEY"],
            "apisix/apisix-admin-key": ["admin", "viewer"],
        }
        self.assertEqual(set(whole), {f"{secret}/{key}" for secret, keys in needed.items() for key in keys})
        for secret, keys in needed.items():
            for key in keys:
                for spoil in (pathlib.Path.unlink, lambda path: path.write_text("")):
                    with self.subTest(f"{secret}/{key}"):
                        spoil(self.folder / secret / key)
                        if secret == "keycloak/keycloak":
                            shutil.rmtree(self.folder / "apisix/kube-coders-gateway")
                        refused = self.call()
                        self.assertEqual(refused.returncode, 1, refused.stdout)
                        namespace, name = secret.split("/")
                        self.assertIn(f'secret/{name} in namespace {namespace} has no "{key}", or an empty one', refused.stderr)
                        if secret == "keycloak/keycloak":
                            self.assertFalse((self.folder / "apisix/kube-coders-gateway").exists())
                            (self.folder / "apisix/kube-coders-gateway").mkdir()
                        for path, text in whole.items():
                            (self.folder / path).write_text(text)
        self.assertEqual(self.call().returncode, 0)

    def test_without_the_namespace_it_says_what_to_apply(self):
        (self.folder / "apisix").rmdir()
        refused = self.call()
        self.assertEqual(refused.returncode, 1)
        self.assertIn('namespaces "apisix" not found', refused.stderr)
        self.assertIn("namespaces.yaml", refused.stderr)

    def test_the_words_of_kubectl_are_passed_on_and_nothing_is_made(self):
        for fault, words in [("unreachable", "Unable to connect"), ("forbidden", "secrets is forbidden")]:
            with self.subTest(fault):
                (self.folder / fault).touch()
                refused = self.call()
                self.assertEqual(refused.returncode, 1, refused.stdout)
                self.assertIn(words, refused.stderr)
                self.assertEqual((refused.stdout, self.contents()), ("", {}))
                (self.folder / fault).unlink()


# Runs what is meant for the pod here, with a stand-in for kcadm.sh that has one file a user.
KUBECTL_EXEC = """\
    #!/usr/bin/env bash
    set -euo pipefail
    [ "$1 $2 $3" = "--namespace keycloak exec" ]
    while [ "$1" != -- ]; do shift; done
    shift
    arguments=()
    for argument in "$@"; do arguments+=("${argument//\\/opt\\/keycloak\\/bin\\/kcadm.sh/kcadm}"); done
    KC_BOOTSTRAP_ADMIN_USERNAME=admin KC_BOOTSTRAP_ADMIN_PASSWORD=of-the-first-admin exec "${arguments[@]}"
"""
KCADM = """\
    #!/usr/bin/env bash
    set -euo pipefail
    echo "$*" >>"$FOLDER/calls"
    # The real one keeps the admin's tokens there.
    before=
    for argument in "$@"; do
      if [ "$before" = --config ]; then
        echo "tokens of the admin" >"$argument"
        echo "$argument" >>"$FOLDER/configs"
      fi
      before=$argument
    done
    case "$1 $2" in
      "config credentials") [ "${KC_CLI_PASSWORD:-}" = of-the-first-admin ] ;;
      "get users")
        for argument in "$@"; do case "$argument" in username=*) user=${argument#username=} ;; esac; done
        if [ -f "$FOLDER/user-$user" ]; then echo 9c02ac07-ee1d-4f49-b799-ac7f0fd0397a; fi
        ;;
      "create users")
        for argument in "$@"; do
          case "$argument" in username=*) printf '%s\\n' "$@" >"$FOLDER/user-${argument#username=}" ;; esac
        done
        ;;
      "get users/9c02ac07-ee1d-4f49-b799-ac7f0fd0397a/credentials")
        if [ -f "$FOLDER/password" ]; then echo password; fi
        ;;
      "set-password -r") printf '%s' "$KC_CLI_PASSWORD" >"$FOLDER/password" ;;
      *) exit 9 ;;
    esac
"""


class Users(Folder):
    def setUp(self):
        super().setUp()
        self.put("kubectl", KUBECTL_EXEC)
        self.put("kcadm", KCADM)

    def call(self, *arguments):
        return run(KUBERNETES / "keycloak" / "add-user.sh", *arguments, env=self.environment())

    def test_a_user_is_made_once_in_the_group_with_a_password_for_once(self):
        made = self.call("alice", "alice@example.com", "Alice", "Example")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertIn("made     alice\n", made.stdout)
        self.assertIn("subject  9c02ac07-ee1d-4f49-b799-ac7f0fd0397a\n", made.stdout)
        password = re.search(r"^password (\S+) ", made.stdout, re.MULTILINE).group(1)
        self.assertEqual(len(base64.b64decode(password)), 18)
        self.assertEqual((self.folder / "password").read_text(), password)
        user = (self.folder / "user-alice").read_text().splitlines()
        self.assertIn('groups=["/developers"]', user)
        self.assertIn("email=alice@example.com", user)
        calls = (self.folder / "calls").read_text()
        self.assertIn("--temporary", calls)
        self.assertNotIn(password, calls)
        self.assertNotIn("of-the-first-admin", calls)
        again = self.call("alice", "alice@example.com", "Alice", "Example")
        self.assertEqual(again.stdout, "kept     alice\nsubject  9c02ac07-ee1d-4f49-b799-ac7f0fd0397a\n")
        self.assertEqual((self.folder / "password").read_text(), password)

    def test_every_user_has_a_password(self):
        alice = ("alice", "alice@example.com", "Alice", "Example")
        self.call(*alice)
        # As after a run that was broken off between the two.
        (self.folder / "password").unlink()
        again = self.call(*alice)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertRegex(again.stdout, r"\Akept     alice\npassword \S+ \(for the first login.*\)\nsubject  9c02ac07")
        first = (self.folder / "password").read_text()
        self.assertIn(first, again.stdout)
        reset = self.call("--reset-password", *alice)
        self.assertEqual(reset.returncode, 0, reset.stderr)
        second = (self.folder / "password").read_text()
        self.assertNotEqual(second, first)
        self.assertIn(f"password {second} ", reset.stdout)
        # One that fails is seen, and nothing is printed as if it counted.
        self.put("kcadm", KCADM.replace("printf '%s' \"$KC_CLI", "exit 1; printf '%s' \"$KC_CLI"))
        failed = self.call("--reset-password", *alice)
        self.assertNotEqual(failed.returncode, 0)
        self.assertNotIn("password ", failed.stdout)

    def left_over(self):
        """Which files with the admin's tokens are still there, of those that there were."""
        paths = {pathlib.Path(line) for line in (self.folder / "configs").read_text().splitlines()}
        self.assertTrue(paths, "the stand-in was given no --config")
        return sorted(path for path in paths if path.exists())

    def test_no_tokens_of_the_admin_stay_in_the_pod(self):
        """Anyone who reads files there could administer all realms with them."""
        alice = ("alice", "alice@example.com", "Alice", "Example")
        self.assertEqual(self.call(*alice).returncode, 0)
        self.assertEqual(self.left_over(), [])
        verbs = ["config credentials", "get users", "create users", "get users/9c02ac07", "set-password -r"]
        for verb in verbs:
            for end in ("exit 1", "kill -TERM $PPID", "kill -HUP $PPID", "kill -INT $PPID"):
                with self.subTest(verb=verb, end=end):
                    (self.folder / "configs").unlink()
                    for name in ("user-alice", "password"):
                        (self.folder / name).unlink(missing_ok=True)
                    failing = f'    case "$1 $2" in "{verb}"*) {end}; exit 1 ;; esac\n    case "$1 $2" in\n      "config cred'
                    self.put("kcadm", KCADM.replace('    case "$1 $2" in\n      "config cred', failing))
                    failed = self.call(*alice)
                    self.assertNotEqual(failed.returncode, 0)
                    self.assertNotIn("password ", failed.stdout)
                    self.assertEqual(self.left_over(), [])

    def test_kcadm_leaves_no_tokens_either(self):
        """The script for all other commands."""
        def kcadm(*arguments, **options):
            return run(KUBERNETES / "keycloak" / "kcadm.sh", *arguments, env=self.environment(), **options)

        self.call("alice", "alice@example.com", "Alice", "Example")
        shown = kcadm("get", "users", "-r", "dev", "-q", "username=alice")
        self.assertEqual((shown.returncode, shown.stdout), (0, "9c02ac07-ee1d-4f49-b799-ac7f0fd0397a\n"), shown.stderr)
        self.assertEqual(self.left_over(), [])
        self.assertNotEqual(kcadm("delete", "everything").returncode, 0)
        self.assertEqual(self.left_over(), [])
        self.assertNotIn("of-the-first-admin", (self.folder / "calls").read_text())
        refused = kcadm()
        self.assertEqual(refused.returncode, 1)
        self.assertIn("found no command", refused.stderr)

    def test_names_are_data(self):
        name = 'O\'Hara "$(touch hacked)" `touch hacked`; 김'
        made = self.call("ohara", "o@example.com", "Pat", name)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertIn("lastName=" + name, (self.folder / "user-ohara").read_text().splitlines())
        for username in ["-x", "a b", "Alice", "$(id)", "", "a&exact=false"]:
            refused = self.call(username, "a@example.com", "A", "B")
            self.assertEqual(refused.returncode, 1, username)
            self.assertIn("username", refused.stderr)

    def test_without_keycloak_it_says_so(self):
        self.put("kcadm", "#!/usr/bin/env bash\nexit 1\n")
        refused = self.call("alice", "alice@example.com", "Alice", "Example")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("is deployment/keycloak ready", refused.stderr)


if __name__ == "__main__":
    unittest.main()
