"""examples/compose and the Dockerfile: what they must say, and what they must not allow."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "compose"
KUBE_CODERS = os.environ.get("KUBE_CODERS", str(ROOT / "target" / "debug" / "kube-coders"))
NAMES = ["coders.localhost", "key.localhost"]
# What the example's prose and files share: one port for browsers, and one for workspaces.
PORT = 8443


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def load(path):
    return yaml.safe_load(read(path))


def run(*command, **options):
    return subprocess.run(command, text=True, capture_output=True, check=False, **options)


def realm():
    return json.loads(read("examples/compose/keycloak/realm-dev.json"))


def route(routes, name):
    (found,) = [one for one in routes["routes"] if one["id"] == name]
    return found


def plugin_conf(routes):
    (service,) = routes["services"]
    (conf,) = service["plugins"]["ext-plugin-pre-req"]["conf"]
    return json.loads(conf["value"])


class Case(unittest.TestCase):
    maxDiff = None

    def not_empty(self, found):
        self.assertTrue(found, "nothing was looked at")
        return found


class ComposeFile(Case):
    def setUp(self):
        self.compose = load("examples/compose/compose.yaml")
        self.services = self.not_empty(self.compose["services"])

    def workspaces(self):
        found = {n: s for n, s in self.services.items() if n.startswith("workspace-")}
        self.assertEqual(sorted(found), ["workspace-alice", "workspace-bob"])
        return found

    def test_is_what_the_schema_of_compose_describes(self):
        schema = ["--builtin-schema", "vendor.compose-spec"]
        checked = run(sys.executable, "-m", "check_jsonschema", *schema, str(FOLDER / "compose.yaml"))
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_a_port_is_published_on_loopback_only(self):
        ports = [port for service in self.services.values() for port in service.get("ports", [])]
        self.assertEqual(ports, [f"127.0.0.1:{PORT}:{PORT}"])

    def test_each_image_is_pinned_to_a_version(self):
        images = self.not_empty([service["image"] for service in self.services.values()])
        for image in images:
            self.assertRegex(image, r":v?\d+\.\d+(\.\d+)*(-[a-z0-9.]+)?$")

    def test_the_runner_is_built_here_and_never_pulled(self):
        runner = self.services["kube-coders"]
        self.assertEqual((FOLDER / runner["build"]["context"]).resolve(), ROOT)
        self.assertEqual(runner["pull_policy"], "build")
        self.assertEqual(runner["image"], "kube-coders:" + cargo("version"))

    def test_the_file_contains_no_secret(self):
        secrets = [
            (service, name, value)
            for service, said in self.services.items()
            for name, value in said.get("environment", {}).items()
            if re.search("SECRET|PASSWORD|TOKEN", name)
        ]
        for service, name, value in self.not_empty(secrets):
            self.assertRegex(value, r"^\$\{[A-Z_]+:\?[^}]+\}$", f"{service}: {name}")

    def test_each_variable_is_in_the_example_of_env_and_without_a_value(self):
        text = read("examples/compose/compose.yaml")
        used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))
        listed = re.findall(r"^([A-Z_]+)=(.*)$", read("examples/compose/.env.example"), re.MULTILINE)
        self.assertEqual(used, {name for name, _ in self.not_empty(listed)})
        self.assertEqual({value for _, value in listed}, {""})
        # A variable without `:?` would be empty if it is not set.
        for name in used:
            self.assertNotRegex(text, r"(?<!\$)\$(\{%s(?!:\?)|%s)" % (name, name))

    def test_the_realms_placeholders_are_in_keycloaks_environment(self):
        used = set(re.findall(r"\$\{([^}]+)\}", read("examples/compose/keycloak/realm-dev.json")))
        self.assertLessEqual(self.not_empty(used), set(self.services["keycloak"]["environment"]))

    def test_workspaces_and_the_gateway_reach_only_each_other(self):
        for name, service in self.workspaces().items():
            networks = list(service["networks"])
            self.assertEqual(networks, [name], "a network of its own, and no other")
            self.assertIs(self.compose["networks"][name]["internal"], True)
            members = [n for n, s in self.services.items() if name in (s.get("networks") or [])]
            self.assertEqual(sorted(members), sorted([name, "pod"]))
            self.assertNotIn("ports", service)
            self.assertNotIn("network_mode", service)

    def test_the_only_network_with_a_way_out_has_only_the_published_port_in_it(self):
        networks = self.not_empty(self.compose["networks"])
        outside = [name for name, network in networks.items() if not network.get("internal")]
        self.assertEqual(outside, ["edge"])
        members = [n for n, s in self.services.items() if "edge" in (s.get("networks") or [])]
        self.assertEqual(members, ["pod"])
        for name, service in self.services.items():
            alone = "networks" in service or service.get("network_mode") == "service:pod"
            self.assertTrue(alone, f"{name} would be in Compose's default network")

    def test_names_match_kube_coders_name_for_the_realms_users(self):
        for user in self.not_empty(realm()["users"]):
            printed = run(KUBE_CODERS, "name", user["id"])
            self.assertEqual(printed.returncode, 0, printed.stderr)
            name = "workspace-" + user["username"]
            aliases = self.services[name]["networks"][name]["aliases"]
            self.assertEqual(aliases, [printed.stdout.strip()])
        self.assertEqual(len(realm()["users"]), len(self.workspaces()))

    def test_the_template_leads_to_what_workspaces_listen_on(self):
        template = plugin_conf(load("examples/compose/apisix/apisix.yaml"))["upstream"]
        self.assertEqual(template, "http://code-{sub}:8443")
        for service in self.workspaces().values():
            self.assertIn("--bind-addr=0.0.0.0:8443", service["command"])
            self.assertIn("--auth=none", service["command"])
            self.assertIn(f"--trusted-origins={NAMES[0]}:{PORT}", service["command"])
            self.assertFalse([flag for flag in service["command"] if flag.startswith("--cert")])
            self.assertIn("http://127.0.0.1:8443/healthz", service["healthcheck"]["test"])

    def test_names_of_workspaces_stay_inside(self):
        pod = self.services["pod"]
        self.assertEqual((pod["dns_opt"], pod["dns_search"]), (["ndots:1"], ["."]))

    def test_gateway_and_runner_share_a_network_and_the_socket(self):
        for name in ("gateway", "kube-coders"):
            service = self.services[name]
            self.assertEqual(service["network_mode"], "service:pod")
            self.assertIn("socket:/run/kube-coders", service["volumes"])
            self.assertIs(service["depends_on"]["pod"]["restart"], True)
        options = self.compose["volumes"]["socket"]["driver_opts"]["o"].split(",")
        self.assertLessEqual({"uid=636", "gid=636", "mode=0770"}, set(options))
        config = load("examples/compose/apisix/config.yaml")
        self.assertEqual(config["ext-plugin"], {"path_for_test": "/run/kube-coders/runner.sock"})

    def test_every_container_has_the_least(self):
        for name, service in self.services.items():
            self.assertEqual(service["cap_drop"], ["ALL"], name)
            self.assertNotIn("cap_add", service, name)
            self.assertNotIn("privileged", service, name)
            self.assertEqual(service["security_opt"], ["no-new-privileges:true"], name)
            self.assertTrue(service["mem_limit"] and service["pids_limit"], name)
            self.assertEqual(service["restart"], "on-failure", name)
        writable = {name for name, service in self.services.items() if not service.get("read_only")}
        self.assertEqual(writable, {"gateway", "keycloak"})

    def test_each_dependency_has_a_health_check(self):
        waits = [
            (name, other, how["condition"])
            for name, service in self.services.items()
            for other, how in service.get("depends_on", {}).items()
        ]
        for name, other, condition in self.not_empty(waits):
            has_check = "healthcheck" in self.services[other]
            expected = "service_healthy" if has_check else "service_started"
            self.assertEqual(condition, expected, f"{name} waits for {other}")

    def test_each_mount_exists_or_is_made_by_the_scripts(self):
        sources = []
        for service in self.services.values():
            sources += [v.split(":")[0] for v in service.get("volumes", []) if isinstance(v, str)]
            for volume in service.get("volumes", []):
                if isinstance(volume, dict):
                    # A file that is missing must not become a folder.
                    self.assertIs(volume["bind"]["create_host_path"], False)
                    self.assertIs(volume["read_only"], True)
                    sources.append(volume["source"])
        for source in self.not_empty(sources):
            if source.startswith("./"):
                self.assertTrue((FOLDER / source).is_file(), source)
            else:
                made = source == "certificates/ca.crt"
                self.assertTrue(made or source in self.compose["volumes"], source)
        self.assertEqual(self.services["gateway"]["env_file"], ["certificates/gateway.env"])


class Routes(Case):
    def setUp(self):
        self.routes = load("examples/compose/apisix/apisix.yaml")
        self.config = load("examples/compose/apisix/config.yaml")
        self.issuer = f"https://{NAMES[1]}:{PORT}/realms/dev"

    def test_kube_coders_check_finds_nothing(self):
        files = [str(FOLDER / "apisix" / name) for name in ("apisix.yaml", "config.yaml")]
        checked = run(KUBE_CODERS, "check", *files)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        self.assertIn("0 errors, 0 warnings in 2 files", checked.stdout + checked.stderr)

    def test_both_routes_log_in_alike_but_for_those_without_a_session(self):
        deny = route(self.routes, "workspaces")["plugins"]["openid-connect"]
        login = route(self.routes, "workspaces-login")["plugins"]["openid-connect"]
        self.assertEqual(deny["unauth_action"], "deny")
        self.assertEqual({**deny, "unauth_action": "auth"}, login)

    def test_there_is_one_issuer_for_all(self):
        login = route(self.routes, "workspaces")["plugins"]["openid-connect"]
        self.assertEqual(login["discovery"], self.issuer + "/.well-known/openid-configuration")
        self.assertIs(login["ssl_verify"], True)
        identity = plugin_conf(self.routes)["identity"]
        self.assertEqual(identity["issuer"], self.issuer)
        self.assertNotIn("discovery", identity)
        self.assertNotIn("allow_http", identity)
        compose = load("examples/compose/compose.yaml")["services"]
        hostname = compose["keycloak"]["environment"]["KC_HOSTNAME"]
        self.assertEqual(hostname + "/realms/dev", self.issuer)
        # Inside, the name is the gateway's own, at the port that it listens on.
        self.assertEqual(compose["pod"]["extra_hosts"], [f"{NAMES[1]}:127.0.0.1"])
        self.assertEqual(self.config["apisix"]["ssl"]["listen"], [{"port": PORT}])

    def test_gateway_and_runner_trust_the_mounted_ca(self):
        ca_file = plugin_conf(self.routes)["identity"]["ca_file"]
        self.assertEqual(self.config["apisix"]["ssl"]["ssl_trusted_certificate"], ca_file)
        compose = load("examples/compose/compose.yaml")["services"]
        for name in ("gateway", "kube-coders"):
            mounted = [v["target"] for v in compose[name]["volumes"] if isinstance(v, dict)]
            self.assertEqual(mounted, [ca_file])

    def test_secrets_come_from_the_gateways_environment(self):
        text = read("examples/compose/apisix/apisix.yaml")
        used = set(re.findall(r"\$env://([A-Z_]+)", text))
        self.assertEqual(self.not_empty(used), set(self.config["nginx_config"]["envs"]))
        gateway = load("examples/compose/compose.yaml")["services"]["gateway"]
        from_script = set(re.findall(r"(CODERS_TLS_[A-Z]+)=", read("examples/compose/certificates.sh")))
        self.assertLessEqual(used, set(gateway["environment"]) | self.not_empty(from_script))
        (certificate,) = self.routes["ssls"]
        self.assertEqual(certificate["snis"], NAMES)
        for field in ("cert", "key"):
            self.assertRegex(certificate[field], r"^\$env://")
        login = route(self.routes, "workspaces")["plugins"]["openid-connect"]
        for secret in (login["client_secret"], login["session"]["secret"]):
            self.assertRegex(secret, r"^\$env://")

    def test_plain_http_is_for_loopback_only(self):
        listen = self.not_empty(self.config["apisix"]["node_listen"])
        self.assertEqual([one["ip"] for one in listen], ["127.0.0.1"])

    def test_keycloaks_administration_is_not_routed(self):
        uris = self.not_empty(route(self.routes, "keycloak")["uris"])
        self.assertEqual(uris, ["/realms/dev/*", "/resources/*"])
        hosts = {one["host"] for one in self.not_empty(self.routes["routes"])}
        self.assertEqual(hosts, set(NAMES))

    def test_the_file_ends_as_the_gateway_wants_it(self):
        self.assertTrue(read("examples/compose/apisix/apisix.yaml").endswith("\n#END\n"))


class InACopy(Case):
    """Scripts run in a copy of the folder, where they write."""

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name) / "compose"
        ignore = shutil.ignore_patterns(".env", "certificates")
        shutil.copytree(FOLDER, self.folder, ignore=ignore)

    def script(self, name, *arguments, expect=0, **options):
        done = run(str(self.folder / name), *arguments, **options)
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        return done

    def state(self):
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {
            str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in self.not_empty(files)
        }

    def mode(self, name):
        return stat.S_IMODE((self.folder / name).stat().st_mode)


class Certificates(InACopy):
    def openssl(self, *arguments):
        return run("openssl", *arguments, cwd=self.folder / "certificates")

    def verifies(self, *how):
        return self.openssl("verify", "-CAfile", "ca.crt", *how, "server.crt").returncode == 0

    def test_a_second_run_changes_nothing(self):
        first = self.script("certificates.sh")
        before = self.state()
        second = self.script("certificates.sh")
        self.assertEqual(self.state(), before)
        self.assertEqual(first.stdout.count("made "), 3, first.stdout)
        self.assertEqual(second.stdout.count("kept "), 2, second.stdout)

    def test_the_certificate_is_the_cas_for_each_name_and_no_other(self):
        self.script("certificates.sh")
        for name in NAMES:
            self.assertTrue(self.verifies("-purpose", "sslserver", "-verify_hostname", name), name)
        for name in ("localhost", "other.localhost", "coders.example.com"):
            self.assertFalse(self.verifies("-verify_hostname", name), name)

    def test_the_ca_can_speak_for_names_under_localhost_only(self):
        self.script("certificates.sh")
        for names, good in [
            ("DNS:any.localhost", True),
            ("DNS:example.com", False),
            ("DNS:localhost.example.com", False),
            ("IP:127.0.0.1", False),
            ("IP:::1", False),
        ]:
            (self.folder / "ext").write_text(f"subjectAltName = {names}\n", encoding="ascii")
            self.openssl("req", "-new", "-key", "server.key", "-subj", "/O=x", "-out", "x.csr")
            signed = self.openssl(
                *"x509 -req -in x.csr -CA ca.crt -CAkey ca.key -set_serial 7 -days 1".split(),
                *"-extfile ../ext -out x.crt".split(),
            )
            self.assertEqual(signed.returncode, 0, signed.stderr)
            checked = self.openssl("verify", "-CAfile", "ca.crt", "x.crt")
            self.assertEqual(checked.returncode == 0, good, names + checked.stderr)

    def test_keys_are_their_owners(self):
        self.script("certificates.sh")
        for name in ("ca.key", "server.key", "gateway.env"):
            self.assertEqual(self.mode(f"certificates/{name}"), 0o600, name)
        # Containers read this one as users of their own.
        self.assertEqual(self.mode("certificates/ca.crt"), 0o644)
        self.assertEqual(self.mode("certificates"), 0o755)

    def test_a_secret_that_others_could_read_is_not_written_where_they_read(self):
        """Rewritten in its place, a file that is 0644 stays so; and who had it open reads on."""
        for spoil in ("ca.key", "server.key", "gateway.env"):
            with self.subTest(spoil):
                self.script("certificates.sh")
                folder = self.folder / "certificates"
                opened = []
                for name in ("ca.key", "server.key", "gateway.env"):
                    for path in (folder / name, folder / f"{name}.new"):
                        path.touch()
                        path.chmod(0o644)
                        opened.append(path.open(encoding="ascii"))
                (folder / spoil).write_text("", encoding="ascii")
                spoilt = (folder / spoil).stat().st_ino
                self.script("certificates.sh")
                self.assertNotEqual((folder / spoil).stat().st_ino, spoilt)
                for file in opened:
                    with file:
                        for name in ("ca.key", "server.key", "gateway.env"):
                            made = (folder / name).read_text(encoding="ascii")
                            if (folder / name).stat().st_ino != os.fstat(file.fileno()).st_ino:
                                file.seek(0)
                                self.assertNotEqual(file.read(), made, (file.name, name))
                for name in ("ca.key", "server.key", "gateway.env"):
                    self.assertEqual(self.mode(f"certificates/{name}"), 0o600, name)
                self.assertNotEqual((folder / spoil).read_text(encoding="ascii"), "")
                shutil.rmtree(folder)

    def test_a_secret_is_never_where_an_old_file_was(self):
        self.script("certificates.sh")
        folder = self.folder / "certificates"
        (folder / "ca.key").unlink()
        with (folder / "server.key").open(encoding="ascii") as key, (folder / "gateway.env").open(encoding="ascii") as env:
            old = (key.read(), env.read())
            self.script("certificates.sh")
            key.seek(0), env.seek(0)
            # A process that had opened the old ones still has them.
            self.assertEqual((key.read(), env.read()), old)
        self.assertNotEqual((folder / "server.key").read_text(encoding="ascii"), old[0])
        self.assertNotEqual((folder / "gateway.env").read_text(encoding="ascii"), old[1])

    def test_files_that_stay_are_closed_to_others_too(self):
        self.script("certificates.sh")
        secrets = ("ca.key", "server.key", "gateway.env")
        for name in secrets:
            (self.folder / "certificates" / name).chmod(0o644)
        self.assertNotIn("made ", self.script("certificates.sh").stdout)
        for name in secrets:
            self.assertEqual(self.mode(f"certificates/{name}"), 0o600, name)

    def test_the_gateway_gets_certificate_and_key_as_they_are(self):
        self.script("certificates.sh")
        said = (self.folder / "certificates" / "gateway.env").read_text(encoding="ascii")
        found = dict(re.findall(r'^([A-Z_]+)="([^"$]*)"$', said, re.MULTILINE))
        self.assertEqual(sorted(found), ["CODERS_TLS_CERT", "CODERS_TLS_KEY"])
        for name, file in [("CODERS_TLS_CERT", "server.crt"), ("CODERS_TLS_KEY", "server.key")]:
            text = (self.folder / "certificates" / file).read_text(encoding="ascii")
            # What Compose makes of \n in double quotes.
            self.assertEqual(found[name].replace("\\n", "\n"), text)

    def test_a_file_that_no_longer_fits_is_made_again(self):
        self.script("certificates.sh")
        folder = self.folder / "certificates"
        # Another CA: its certificate has to be another one, too.
        (folder / "ca.key").unlink()
        self.script("certificates.sh")
        self.assertTrue(self.verifies("-verify_hostname", NAMES[0]))
        # A certificate without one of the names.
        self.openssl("req", "-new", "-key", "server.key", "-subj", "/CN=x", "-out", "x.csr")
        (folder / "ext").write_text(f"subjectAltName = DNS:{NAMES[0]}\n", encoding="ascii")
        self.openssl(
            *"x509 -req -in x.csr -CA ca.crt -CAkey ca.key -set_serial 7 -days 60".split(),
            *"-extfile ext -out server.crt".split(),
        )
        self.script("certificates.sh")
        for name in NAMES:
            self.assertTrue(self.verifies("-verify_hostname", name), name)
        # One that ends soon.
        self.openssl(
            *"x509 -req -in x.csr -CA ca.crt -CAkey ca.key -set_serial 7 -days 3".split(),
            *"-extfile ext -out server.crt".split(),
        )
        self.assertIn("made ", self.script("certificates.sh").stdout)
        soon = self.openssl("x509", "-in", "server.crt", "-noout", "-checkend", str(80 * 86400))
        self.assertEqual(soon.returncode, 0)

    def test_remove_deletes_the_folder_and_says_what_is_left_to_do(self):
        self.script("certificates.sh")
        removed = self.script("certificates.sh", "remove")
        self.assertFalse((self.folder / "certificates").exists())
        self.assertIn("take it out there too", removed.stdout)
        self.assertIn("nothing to remove", self.script("certificates.sh", "remove").stdout)

    def test_unknown_arguments_are_refused(self):
        refused = self.script("certificates.sh", "renew", expect=1)
        self.assertEqual(
            refused.stderr,
            'certificates.sh: "renew" is no command; without one it makes certificates, '
            'with "remove" it deletes them\n',
        )
        (self.folder / "certificates").write_text("", encoding="ascii")
        refused = self.script("certificates.sh", expect=1)
        self.assertRegex(refused.stderr, r"certificates is no folder; move it away\n$")


class Secrets(InACopy):
    def values(self):
        said = (self.folder / ".env").read_text(encoding="ascii")
        return dict(self.not_empty(re.findall(r"^([A-Z_]+)=(.*)$", said, re.MULTILINE)))

    def test_each_gets_a_random_value_that_stays(self):
        self.script("secrets.sh")
        values, before = self.values(), self.state()
        listed = re.findall(r"^([A-Z_]+)=", read("examples/compose/.env.example"), re.MULTILINE)
        self.assertEqual(list(values), self.not_empty(listed))
        self.assertEqual(len(set(values.values())), len(values))
        for name, value in values.items():
            # The gateway wants 16 for its session, the realm 12 for a password, and its JSON
            # neither quotes nor backslashes.
            self.assertRegex(value, r"^[0-9a-f]{32}$", name)
        self.assertEqual(self.mode(".env"), 0o600)
        self.assertIn("nothing to make", self.script("secrets.sh").stdout)
        self.assertEqual(self.state(), before)

    def test_existing_values_stay_and_missing_ones_are_added(self):
        old = "# mine\nALICE_PASSWORD=chosen by nobody\nBOB_PASSWORD=\nOTHER=1"
        (self.folder / ".env").write_text(old, encoding="ascii")
        self.script("secrets.sh")
        values = self.values()
        self.assertEqual(values["ALICE_PASSWORD"], "chosen by nobody")
        self.assertEqual(values["OTHER"], "1")
        self.assertRegex(values["BOB_PASSWORD"], r"^[0-9a-f]{32}$")
        self.assertRegex(values["SESSION_SECRET"], r"^[0-9a-f]{32}$")
        self.assertTrue((self.folder / ".env").read_text(encoding="ascii").startswith("# mine\n"))
        self.assertFalse(list(self.folder.glob(".env.??????*.missing")))

    def test_a_value_of_ones_own_stays_whatever_it_ends_in(self):
        mine = {
            "ALICE_PASSWORD": "c2VjcmV0LXZhbHVlLW9mLW1pbmU=",
            "BOB_PASSWORD": "bXkgb3duIHNlY3JldCB2YWx1ZQ==",
            "KEYCLOAK_CLIENT_SECRET": "A=",
            "POSTGRES_PASSWORD": "=",
        }
        old = "".join(f"{name}={value}\n" for name, value in mine.items())
        (self.folder / ".env").write_text(f"{old}# NOTE=\nlower_case=\nSESSION_SECRET=\n", encoding="ascii")
        said = self.script("secrets.sh").stdout
        text = (self.folder / ".env").read_text(encoding="ascii")
        self.assertTrue(text.startswith(f"{old}# NOTE=\nlower_case=\nSESSION_SECRET="), text)
        self.assertIn("SESSION_SECRET", said)
        for name, value in mine.items():
            self.assertEqual(self.values()[name], value)
            self.assertNotIn(name, said)
        before = self.state()
        self.script("secrets.sh")
        self.assertEqual(self.state(), before)

    def test_it_is_its_owners_alone_even_if_it_was_not(self):
        self.script("secrets.sh")
        (self.folder / ".env").chmod(0o644)
        self.assertIn("nothing to make", self.script("secrets.sh").stdout)
        self.assertEqual(self.mode(".env"), 0o600)
        with (self.folder / ".env").open("a", encoding="ascii") as file:
            file.write("MORE_SECRET=\n")
        (self.folder / ".env").chmod(0o644)
        self.script("secrets.sh")
        self.assertEqual(self.mode(".env"), 0o600)
        self.assertEqual(sorted(path.name for path in self.folder.glob(".env*")), [".env", ".env.example"])

    def test_git_ignores_what_the_scripts_make(self):
        ignored = read("examples/compose/.gitignore").split()
        self.assertLessEqual({"/.env", "/certificates/"}, set(ignored))


def cargo(field):
    (value,) = re.findall(rf'^{field} = "([^"]+)"', read("Cargo.toml"), re.MULTILINE)[:1]
    return value


class Image(Case):
    def setUp(self):
        self.text = read("Dockerfile")
        self.lines = [line for line in self.text.splitlines() if not line.startswith("#")]

    def test_it_is_built_with_the_version_that_the_project_names(self):
        stages = re.findall(r"^FROM (\S+)", self.text, re.MULTILINE)
        self.assertEqual(len(stages), 2)
        self.assertRegex(stages[0], rf"^rust:{re.escape(cargo('rust-version'))}\.\d+-slim-[a-z]+$")
        self.assertEqual(stages[1], "scratch")

    def test_it_says_the_projects_version(self):
        (version,) = re.findall(r'image\.version="([^"]+)"', self.text)
        self.assertEqual(version, cargo("version"))

    def test_it_runs_as_the_gateways_user_and_can_be_asked_for_its_health(self):
        program = "/opt/kube-coders/kube-coders"
        for line in (
            "USER 636:636",
            f'ENTRYPOINT ["{program}"]',
            'CMD ["run"]',
            f'    CMD ["{program}", "health"]',
        ):
            self.assertIn(line, self.lines)

    def copied(self):
        found = [
            source
            for line in self.lines
            if line.startswith("COPY ") and "--from" not in line
            for source in line.split()[1:-1]
        ]
        return self.not_empty(found)

    def test_all_that_the_program_includes_is_copied(self):
        copied = [ROOT / source for source in self.copied()]
        included = []
        sources = [ROOT / "src", ROOT / "flatbuffers" / "src", *(ROOT / "crates").glob("*/src")]
        for path in self.not_empty([path for source in sources for path in source.rglob("*.rs")]):
            # A module's tests stand at its end, and are not built for the image.
            shipped = re.split(r"^#\[cfg\(test\)\]\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[0]
            # A page that is tested as documentation is not built either.
            shipped = re.sub(r"^#\[cfg\([^\n]*\bdoctest\b.*\n#\[doc = include_str.*\n", "", shipped, flags=re.MULTILINE)
            said = re.findall(r'(?:include_(?:str|bytes)!\(|#\[path = )"([^"]+)"', shipped)
            if "tests" not in path.parts and path.name != "tests.rs":
                included += [(path.parent / one).resolve() for one in said]
        for path in self.not_empty(included):
            self.assertTrue(any(path.is_relative_to(one) for one in copied), path)

    def test_each_member_of_the_workspace_is_copied_with_a_source_file(self):
        copied = [ROOT / source for source in self.copied()]
        (members,) = re.findall(r"^members = \[(.+)\]$", read("Cargo.toml"), re.MULTILINE)
        for member in self.not_empty(re.findall(r'"([^"]+)"', members)):
            for file in (ROOT / member / "Cargo.toml", ROOT / member / "src" / "lib.rs"):
                self.assertTrue(any(file.is_relative_to(one) for one in copied), file)

    def test_all_that_is_copied_is_there_and_in_the_context(self):
        context = read(".dockerignore").split("\n")
        self.assertIn("*", context)
        copied = self.copied()
        for source in copied:
            self.assertTrue((ROOT / source).exists(), source)
        self.assertEqual({line[1:] for line in context if line.startswith("!")}, set(copied))


if __name__ == "__main__":
    unittest.main()
