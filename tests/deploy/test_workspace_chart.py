"""The chart of a workspace, rendered by a real Helm and checked without a cluster."""

import ipaddress
import json
import os
import random
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "examples/kubernetes/charts/workspace"
VECTORS = json.loads((REPOSITORY / "tests/vectors/labels.json").read_text())
KUBE_CODERS = os.environ.get("KUBE_CODERS", str(REPOSITORY / "target/debug/kube-coders"))

# The oldest that Chart.yaml allows, and the newest that there are schemas of.
KUBERNETES = ("1.32", "1.37")

SUBJECT = {"user": {"subject": "alice"}}

# The chart with everything that is optional switched on.
FULL = {
    "user": {"subject": "auth0|5f7c8ec7c33c6c004bbafe82"},
    "role": "frontend",
    "images": {"frontend": {"digest": "sha256:" + "0" * 64}},
    "imagePullSecrets": [{"name": "registry"}],
    "server": {"idleTimeoutSeconds": 3600, "extraArgs": ["--locale=ko"], "bindAddress": "[::]"},
    "extraPorts": [{"name": "dev", "port": 3000}, {"name": "storybook", "port": 6006}],
    "env": [{"name": "TZ", "value": "Asia/Seoul"}],
    "envFrom": [{"configMapRef": {"name": "proxies"}}],
    "persistence": {
        "storageClassName": "nfs",
        "claimName": "restored",
        "fromSnapshot": "before",
        "accessModes": ["ReadWriteMany"],
    },
    "snapshots": {"beforeUpgrade": True, "volumeSnapshotClassName": "nfs"},
    "networkPolicy": {
        "egress": {"extra": [{"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 443}]}]}
    },
    "serviceAccountName": "workspace",
    "runtimeClassName": "gvisor",
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "workspaces", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
}
PASSWORD = {"auth": {"mode": "password", "existingSecret": "alice"}}

# What is not the internet, and stays in a list of one's own; and what a network may need to get there.
INSIDE_IPV4 = [
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8",
    "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4", "168.63.129.16/32",
]
INSIDE_IPV6 = ["fc00::/7", "fe80::/10"]
NAT64 = ["64:ff9b::/96", "64:ff9b:1::/48"]

# What text may hold that YAML, Go's templates, a shell or a label could take for their own.
HOSTILE = [
    "a\"b", "a'b", "a\\b", "\\", "\"", "'", "a\nb", "\n", "a\r\nb", "a\tb", "a\x00b", "a\x07b", "a\x7fb", "a\x85b",
    "a\u2028b", "a\ufeffb", "\ufeff", "a\n---\nkind: Secret", "\n- evil: true", "a: b", "# a", "a # b", "- a", "*a", "&a b",
    "!!int 7", "{a: b}", "[a]", "? a", "| a", "> a", "%YAML 1.2", "@a", "`a`", "~", "null", "true", "no", "7", "0x7", "1e3",
    ".inf", "2026-01-01", "<<", "=", "{{ .Release.Name }}", "{{ fail \"x\" }}", "{{", "}}", "$(id)", "${HOME}", "`id`", "; id",
    "code-{sub}", "{sub}", "김재훈", "😀", "K", "İ", "ſ", "ß",
]


def merged(*parts):
    """Values laid over each other, deeply."""
    result = {}
    for part in parts:
        for key, value in part.items():
            both_maps = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both_maps else value
    return result


def setUpModule():
    global chart
    chart = helm.Chart.load(CHART)
    print(f"\nHelm {helm.helm_sdk_version()}, Kubernetes {' and '.join(KUBERNETES)}, {KUBE_CODERS}")


def tearDownModule():
    chart.close()


def texts(values, revision=1):
    """The rendered files by name, without those that rendered to nothing."""
    rendered = chart.render(
        values, name="a-release", namespace="code-server", revision=revision, is_install=revision == 1, is_upgrade=revision > 1
    )
    named = {path.removeprefix("workspace/templates/"): text for path, text in rendered.items()}
    return {path: text for path, text in named.items() if text.strip() and not path.startswith("_")}


def objects(*parts, revision=1):
    """The rendered objects by kind, of which there is one each."""
    result = {}
    for path, text in texts(merged(SUBJECT, *parts), revision).items():
        if path == "NOTES.txt":
            continue
        documents = list(yaml.safe_load_all(text))
        assert len(documents) == 1, f"{path} has {len(documents)} documents"
        assert documents[0]["kind"] not in result, f"{path} is a second {documents[0]['kind']}"
        result[documents[0]["kind"]] = documents[0]
    return result


def pod(*parts):
    return objects(*parts)["Deployment"]["spec"]["template"]["spec"]


def code_server(*parts):
    (container,) = pod(*parts)["containers"]
    return container


def name_of(rendered):
    """The one name that all of these objects have or lead to."""
    name = rendered["Service"]["metadata"]["name"]
    deployment, policy = rendered["Deployment"], rendered["NetworkPolicy"]
    assert {item["metadata"]["name"] for item in rendered.values()} == {name}
    assert {item["metadata"]["labels"]["app.kubernetes.io/instance"] for item in rendered.values()} == {name}
    selector = {"app.kubernetes.io/name": "workspace", "app.kubernetes.io/instance": name}
    assert rendered["Service"]["spec"]["selector"] == selector
    assert deployment["spec"]["selector"] == {"matchLabels": selector}
    assert policy["spec"]["podSelector"] == {"matchLabels": selector}
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    template = deployment["spec"]["template"]["spec"]
    assert template["hostname"] == name
    assert template["volumes"][0]["persistentVolumeClaim"] == {"claimName": name}
    return name


def names_by_kube_coders(template, subjects):
    """All names from one run, since none of these is refused."""
    command = [KUBE_CODERS, "name", "--template", template, "--", *subjects]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == len(subjects), f"{len(lines)} names of {len(subjects)} subjects"
    return lines


class Case(unittest.TestCase):
    def refused(self, error, message, *parts):
        with self.assertRaises(error) as caught:
            objects(*parts)
        self.assertIn(message, str(caught.exception))


class Lint(Case):
    def test_the_chart_is_clean(self):
        for values in (SUBJECT, FULL, merged(SUBJECT, PASSWORD)):
            report = helm.lint(CHART, values, strict=True)
            self.assertEqual(report["errors"], [])
            told = [message["error"] for message in report["messages"]]
            self.assertEqual(told, ["icon is recommended"])

    def test_lint_reports_a_release_without_a_subject(self):
        self.assertTrue(any("subject" in error for error in helm.lint(CHART)["errors"]))


class Names(Case):
    def test_every_vector_gives_its_name(self):
        self.assertGreater(len(VECTORS), 50)
        equal, refused, digits, by_program = 0, 0, 0, {}
        for vector in VECTORS:
            values = {"user": {"subject": vector["value"]}, "nameTemplate": vector["template"]}
            label = vector["label"]
            if label is None:
                with self.assertRaises(helm.HelmValuesError, msg=vector):
                    objects(values)
                refused += 1
            elif label[0].isdigit():
                # A Service's name has to begin with a letter (RFC 1035), a label need not.
                self.refused(helm.HelmRenderError, f'the name "{label}" starts with a digit', values)
                digits += 1
            else:
                self.assertEqual(name_of(objects(values)), label, vector)
                by_program.setdefault(vector["template"], []).append((vector["value"], label))
                equal += 1
        self.assertEqual(equal + refused + digits, len(VECTORS))
        self.assertEqual(digits, 1)
        self.assertEqual(set(by_program), {"code-{sub}", "{sub}", "ws-{sub}-dev"})

        asked, unaskable = 0, 0
        for template, pairs in by_program.items():
            # No argument of a program can hold a NUL; the chart's value can.
            askable = [pair for pair in pairs if "\0" not in pair[0]]
            unaskable += len(pairs) - len(askable)
            names = names_by_kube_coders(template, [subject for subject, _ in askable])
            self.assertEqual(names, [label for _, label in askable])
            asked += len(names)
        self.assertEqual(unaskable, 1)
        print(
            f"\n{len(VECTORS)} vectors: {equal} names equal, {asked} of them kube-coders' too ({unaskable} with NUL not asked),"
            f" {digits} refused for its digit, {refused} refused as kube-coders does"
        )

    def test_names_equal_those_of_kube_coders_for_made_up_subjects(self):
        chance = random.Random(7)
        alphabets = ["ab0-", "aB-.", "a-", "abc", "aKİſßéµΩ-", "a😀김-_|@. ", "AZ09"]
        subjects = HOSTILE + [
            "".join(chance.choices(chance.choice(alphabets), k=chance.choice([1, 2, 5, 20, 38, 39, 40, 57, 58, 59, 63, 255])))
            for _ in range(300)
        ]
        subjects = [subject for subject in subjects if "\0" not in subject]
        chosen = {template: subjects[offset::3] for offset, template in enumerate(["code-{sub}", "w{sub}", "a-{sub}-b0"])}
        for template, part in chosen.items():
            made = [name_of(objects({"user": {"subject": subject}, "nameTemplate": template})) for subject in part]
            for subject, ours, theirs in zip(part, made, names_by_kube_coders(template, part)):
                self.assertEqual(ours, theirs, f"{subject!r} in {template}")
        print(f"\n{len(subjects)} made-up subjects: all names equal those of kube-coders")

    def test_lengths_are_counted_in_characters(self):
        self.assertEqual(len(name_of(objects({"user": {"subject": "김" * 255}}))), len("code-x---") + 32)
        self.refused(helm.HelmValuesError, "maxLength: got 256, want 255", {"user": {"subject": "😀" * 256}})

    def test_a_template_leaves_room_for_the_label(self):
        self.assertEqual(len(name_of(objects({"user": {"subject": "A"}, "nameTemplate": "a" * 27 + "{sub}"}))), 63)
        self.refused(
            helm.HelmRenderError, "nameTemplate has 28 bytes of its own, and 27 are allowed there", {"nameTemplate": "a" * 28 + "{sub}"}
        )

    def test_the_template_may_name_another_claim(self):
        for template, value in (("ws-{email}", "a@b.c"), ("{preferred_username}-dev", "alice"), ("w{realm_access.x}", "Bob")):
            values = {"user": {"subject": value}, "nameTemplate": template}
            self.assertEqual([name_of(objects(values))], names_by_kube_coders(template, [value]))
        notes = texts(merged(SUBJECT, {"user": {"subject": "a@b.c"}, "nameTemplate": "ws-{email}"}))["NOTES.txt"]
        self.assertIn('The workspace of email "a@b.c":', notes)
        self.assertIn("`kube-coders name --template 'ws-{email}'`", notes)
        self.assertIn("http://ws-{email}.code-server.svc.cluster.local:8443.", notes)

    def test_a_wrong_template_is_refused_in_words(self):
        hint = "it is the host label of the template in the gateway's conf, such as code-{sub} or ws-{email}"
        for template, message in (
            ("code", "has 0 claims in braces, and needs one: " + hint),
            ("{sub}-{email}", "has 2 claims in braces, and needs one"),
            ("code-{}", 'names no claim in "{}"'),
            ("code-{a b}", 'names no claim in "{a b}"'),
            ("Code-{sub}", "has more than small letters, digits and - beside the claim"),
            ("http://code-{sub}.svc:8443", "without a scheme, a dot or a port"),
            ("code-{sub}.code-server", "without a scheme, a dot or a port"),
            ("code_{sub}", "has more than small letters, digits and - beside the claim"),
            ("-{sub}", "begins or ends with -, which no host label may"),
            ("code-{sub}-", "begins or ends with -, which no host label may"),
        ):
            self.refused(helm.HelmRenderError, message, {"nameTemplate": template})

    def test_the_subject_is_checked_without_the_schema_too(self):
        # Helm can be told to skip the schema.
        with tempfile.TemporaryDirectory() as folder:
            chart.save_dir(folder)
            (Path(folder) / "workspace/values.schema.json").unlink()
            with helm.Chart.load(Path(folder) / "workspace") as bare:
                for subject, message in (
                    (7, "user.subject is a float64, and has to be a string: put it in quotes, or use --set-string"),
                    (None, "user.subject is missing: the workspace's name is made of it"),
                    ("", "user.subject has 0 characters, and needs 1 to 255"),
                    ("김" * 256, "user.subject has 256 characters, and needs 1 to 255"),
                ):
                    with self.assertRaises(helm.HelmRenderError) as caught:
                        bare.render({"user": {"subject": subject}})
                    self.assertIn(message, str(caught.exception))


class Schemas(Case):
    def test_every_manifest_is_valid(self):
        sets = [
            {}, FULL, PASSWORD, {"replicas": 0}, {"persistence": {"existingClaim": "mine"}},
            {"networkPolicy": {"egress": {"restricted": False}}}, {"networkPolicy": {"egress": {"internet": False}}},
            merged(PASSWORD, {"networkPolicy": {"enabled": False}}), {"persistence": {"storageClassName": ""}},
        ]
        checked = {}
        for values in sets:
            for kind, item in objects(values).items():
                for version in KUBERNETES:
                    if kind == "VolumeSnapshot":
                        # A custom resource: there is no schema, so its fields are compared below.
                        with self.assertRaises(kubernetes_validate.SchemaNotFoundError):
                            kubernetes_validate.validate(item, version, strict=True)
                        continue
                    kubernetes_validate.validate(item, version, strict=True)
                    checked[kind] = checked.get(kind, 0) + 1
        self.assertEqual(set(checked), {"Deployment", "Service", "PersistentVolumeClaim", "NetworkPolicy"})
        print(f"\n{sum(checked.values())} manifests valid: {checked}")

    def test_the_schemas_do_refuse(self):
        broken = objects()["Deployment"]
        broken["spec"]["template"]["spec"]["automountServiceAccountTokens"] = False
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, KUBERNETES[-1], strict=True)

    def test_names_and_labels_are_legal(self):
        longest = merged({"user": {"subject": "a" * 255}})
        for values in (longest, FULL):
            for item in objects(values).values():
                for value in item["metadata"]["labels"].values():
                    self.assertRegex(value, r"\A[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
        self.assertEqual(len(name_of(objects(longest))), 63)


class Hardening(Case):
    """The default rendering's properties, one by one."""

    def both(self):
        template = pod()
        return template["initContainers"] + template["containers"]

    def test_there_are_two_containers_of_one_image(self):
        self.assertEqual([container["name"] for container in self.both()], ["home", "code-server"])
        self.assertEqual(len({container["image"] for container in self.both()}), 1)

    def test_no_service_account_token_is_mounted(self):
        self.assertIs(pod()["automountServiceAccountToken"], False)

    def test_no_variables_name_other_workspaces(self):
        self.assertIs(pod()["enableServiceLinks"], False)

    def test_it_runs_as_an_ordinary_user(self):
        security = pod()["securityContext"]
        self.assertIs(security["runAsNonRoot"], True)
        self.assertEqual((security["runAsUser"], security["runAsGroup"], security["fsGroup"]), (1000, 1000, 1000))
        for container in self.both():
            self.assertFalse({"runAsUser", "runAsGroup", "runAsNonRoot"} & container["securityContext"].keys())

    def test_the_runtimes_seccomp_profile_applies(self):
        self.assertEqual(pod()["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        for container in self.both():
            self.assertNotIn("seccompProfile", container["securityContext"])

    def test_no_container_gains_privileges(self):
        for container in self.both():
            self.assertIs(container["securityContext"]["allowPrivilegeEscalation"], False)
            self.assertIs(container["securityContext"]["privileged"], False)

    def test_all_capabilities_are_dropped(self):
        for container in self.both():
            self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})

    def test_the_root_file_system_is_read_only(self):
        for container in self.both():
            self.assertIs(container["securityContext"]["readOnlyRootFilesystem"], True)
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            self.assertEqual(mounts, {"/home/coder": "home", "/tmp": "tmp"})

    def test_nothing_of_the_node_is_shared(self):
        template = pod()
        self.assertFalse({"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & template.keys())
        for volume in template["volumes"]:
            self.assertIn(set(volume) - {"name"}, ({"persistentVolumeClaim"}, {"emptyDir"}))
        for container in self.both():
            self.assertFalse(any("hostPort" in port for port in container.get("ports", [])))

    def test_resources_are_small_and_limited(self):
        for container in self.both():
            self.assertEqual(set(container["resources"]), {"requests", "limits"})
            self.assertEqual(set(container["resources"]["limits"]), {"cpu", "memory"})
        self.assertEqual(code_server()["resources"]["requests"], {"cpu": "100m", "memory": "512Mi"})
        self.assertEqual(pod()["volumes"][1]["emptyDir"], {"sizeLimit": "2Gi"})

    def test_probes_ask_nothing_but_healthz(self):
        container = code_server()
        probes = [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
        self.assertEqual([probe["httpGet"] for probe in probes], [{"path": "/healthz", "port": "http"}] * 3)
        self.assertGreaterEqual(probes[0]["periodSeconds"] * probes[0]["failureThreshold"], 300)

    def test_settings_and_extensions_lie_on_the_volume(self):
        args = code_server()["args"]
        self.assertIn("--user-data-dir=/home/coder/.local/share/code-server", args)
        self.assertIn("--extensions-dir=/home/coder/.local/share/code-server/extensions", args)

    def test_nothing_is_reported_to_others(self):
        self.assertTrue({"--disable-telemetry", "--disable-update-check"} <= set(code_server()["args"]))

    def test_there_are_never_two_at_one_home(self):
        spec = objects()["Deployment"]["spec"]
        self.assertEqual((spec["replicas"], spec["strategy"]), (1, {"type": "Recreate"}))

    def test_the_service_is_of_the_cluster_only(self):
        spec = objects()["Service"]["spec"]
        self.assertEqual(spec["type"], "ClusterIP")
        self.assertEqual(spec["ports"], [{"name": "http", "port": 8443, "targetPort": "http", "protocol": "TCP"}])

    def test_the_home_outlives_the_release(self):
        for values in ({}, FULL):
            annotations = objects(values)["PersistentVolumeClaim"]["metadata"]["annotations"]
            self.assertEqual(annotations["helm.sh/resource-policy"], "keep")

    def test_every_image_is_pinned(self):
        for values in ({}, FULL):
            for text in texts(merged(SUBJECT, values)).values():
                self.assertNotIn("latest", text)
            template = pod(values)
            for container in template["initContainers"] + template["containers"]:
                self.assertRegex(container["image"], r":4\.[0-9]+\.[0-9]+-[0-9]+(@sha256:[0-9a-f]{64})?\Z")
        self.assertIn("'not' failed", self.message_of({"images": {"backend": {"tag": "latest"}}}))

    def message_of(self, values):
        with self.assertRaises(helm.HelmValuesError) as caught:
            objects(values)
        return str(caught.exception)


class Gateway(Case):
    """Who may reach a workspace, and whom it may reach."""

    def test_only_the_gateways_pods_are_admitted(self):
        policy = objects()["NetworkPolicy"]["spec"]
        self.assertEqual(policy["policyTypes"], ["Ingress", "Egress"])
        gateway = {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apisix"}},
            "podSelector": {
                "matchLabels": {"app.kubernetes.io/name": "apisix", "app.kubernetes.io/instance": "apisix"}
            },
        }
        self.assertEqual(policy["ingress"], [{"from": [gateway], "ports": [{"port": 8443, "protocol": "TCP"}]}])

    def test_an_empty_selector_is_refused(self):
        # It would admit every pod, or every namespace.
        for selector in ("namespaceLabels", "podLabels"):
            # Null takes a default away.
            nothing = {selector: dict.fromkeys(chart.values["networkPolicy"]["gateway"][selector])}
            self.refused(helm.HelmValuesError, "minProperties: got 0, want 1", {"networkPolicy": {"gateway": nothing}})
            self.refused(
                helm.HelmValuesError, selector, {"networkPolicy": {"gateway": {selector: None}}}
            )

    def test_half_a_selector_is_refused(self):
        # Null takes one label away, and what is left admits more than the gateway.
        for selector, label in (("namespaceLabels", "kubernetes.io/metadata.name"), ("podLabels", "app.kubernetes.io/name")):
            for more in ({}, {"team": "platform"}):
                values = {"networkPolicy": {"gateway": {selector: {label: None, **more}}}}
                self.refused(helm.HelmValuesError, f"missing property '{label}'", values)
        # One gateway in the namespace may be told by the name alone.
        alone = {"networkPolicy": {"gateway": {"podLabels": {"app.kubernetes.io/instance": None}}}}
        (peer,) = objects(alone)["NetworkPolicy"]["spec"]["ingress"][0]["from"]
        self.assertEqual(peer["podSelector"], {"matchLabels": {"app.kubernetes.io/name": "apisix"}})

    def test_no_password_without_a_policy_is_refused(self):
        off = {"networkPolicy": {"enabled": False}}
        self.refused(
            helm.HelmRenderError,
            "auth.mode none lets in whoever reaches the port, so it needs networkPolicy.enabled: true;"
            " or set auth.mode password and auth.existingSecret",
            off,
        )
        rendered = objects(off, PASSWORD)
        self.assertNotIn("NetworkPolicy", rendered)
        self.assertIn("--auth=password", code_server(off, PASSWORD)["args"])

    def test_with_a_network_policy_no_password_is_needed(self):
        self.assertIn("--auth=none", code_server()["args"])
        self.assertIn("NetworkPolicy", objects())

    def test_a_password_comes_from_a_secret(self):
        self.refused(
            helm.HelmRenderError,
            "auth.mode password needs auth.existingSecret, the name of a Secret with the password",
            {"auth": {"mode": "password"}},
        )
        for hashed, variable in ((False, "PASSWORD"), (True, "HASHED_PASSWORD")):
            env = code_server(PASSWORD, {"auth": {"hashed": hashed}})["env"]
            reference = {"secretKeyRef": {"name": "alice", "key": "password"}}
            self.assertIn({"name": variable, "valueFrom": reference}, env)

    def test_flags_that_would_open_the_port_are_refused(self):
        for flag in ("--auth=none", "--auth", "--bind-addr=0.0.0.0:80", "--config=/tmp/a", "--socket=/tmp/a", "--cert", "auth"):
            with self.subTest(flag), self.assertRaises(helm.HelmValuesError):
                objects({"server": {"extraArgs": [flag]}})
        self.assertIn("--locale=ko", code_server(FULL)["args"])

    def test_flags_that_would_undo_the_charts_are_refused(self):
        # Of a flag that is given twice, code-server takes the last.
        own = [arg.split("=")[0] for arg in code_server(FULL)["args"] if "=" in arg and arg not in FULL["server"]["extraArgs"]]
        self.assertEqual(len(own), 6)
        for flag in own:
            for arg in (f"{flag}=/tmp/a", flag):
                with self.subTest(arg), self.assertRaises(helm.HelmValuesError):
                    objects({"server": {"extraArgs": [arg]}})
        for arg in ("--disable-proxy", "--disable-file-downloads", "--user-data-dir-of=mine"):
            self.assertIn(arg, code_server({"server": {"extraArgs": [arg]}})["args"])

    def test_not_every_origin_is_trusted(self):
        # With a star, a page of any site could open a WebSocket into the workspace of the user who opens it.
        for arg in ("--trusted-origins=*", "--trusted-origins=a.example.com,*", "--trusted-origins"):
            with self.subTest(arg), self.assertRaises(helm.HelmValuesError):
                objects({"server": {"extraArgs": [arg]}})
        one = "--trusted-origins=coders.example.com"
        self.assertIn(one, code_server({"server": {"extraArgs": [one]}})["args"])

    def test_variables_that_would_undo_the_charts_are_refused(self):
        # Of a variable that is given twice, the last counts.
        for name in ("HOME", "PASSWORD", "HASHED_PASSWORD", "PORT", "CODE_SERVER_HOST", "CODE_SERVER_CONFIG"):
            for values in ({}, PASSWORD):
                with self.subTest(name):
                    self.refused(
                        helm.HelmRenderError,
                        f"env has {name}, which the chart or code-server's flags set: see the chart's README",
                        values,
                        {"env": [{"name": "TZ", "value": "UTC"}, {"name": name, "value": "1"}]},
                    )

    def test_a_workspace_reaches_names_and_the_internet_only(self):
        dns, internet = objects()["NetworkPolicy"]["spec"]["egress"]
        self.assertEqual([(port["port"], port["protocol"]) for port in dns["ports"]], [(53, "UDP"), (53, "TCP")])
        (peer,) = dns["to"]
        self.assertEqual(peer["podSelector"], {"matchLabels": {"k8s-app": "kube-dns"}})
        self.assertEqual(peer["namespaceSelector"], {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}})
        blocks = {peer["ipBlock"]["cidr"]: set(peer["ipBlock"]["except"]) for peer in internet["to"]}
        self.assertEqual(set(blocks), {"0.0.0.0/0", "::/0"})
        self.assertEqual(blocks["0.0.0.0/0"], {*INSIDE_IPV4})
        self.assertEqual(blocks["::/0"], {*INSIDE_IPV6, *NAT64})
        self.assertEqual(set(internet), {"to"})

    def reaches(self, address, *parts):
        """Whether one of the policy's rules lets a workspace connect to an address that is no pod's."""
        address = ipaddress.ip_address(address)
        for rule in objects(*parts)["NetworkPolicy"]["spec"]["egress"]:
            for peer in rule["to"]:
                block = peer.get("ipBlock")
                if block and address in ipaddress.ip_network(block["cidr"]):
                    if not any(address in ipaddress.ip_network(one) for one in block.get("except", [])):
                        return True
        return False

    def test_no_metadata_service_is_reached(self):
        inside = [
            "169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "100.100.100.200", "192.0.0.192",
            "168.63.129.16", "64:ff9b::169.254.169.254", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "198.18.0.1", "198.19.255.255",
            "240.0.0.1", "255.255.255.255", "10.1.2.3", "127.0.0.1", "fe80::1",
        ]
        for address in inside:
            self.assertFalse(self.reaches(address), address)
        for address in ("1.1.1.1", "168.63.129.17", "198.20.0.1", "192.0.1.1", "223.255.255.255", "2606:4700::1111"):
            self.assertTrue(self.reaches(address), address)

    def test_a_list_of_ones_own_keeps_what_is_inside(self):
        """Helm replaces lists: a value that adds a range would take the others away."""
        mine = "203.0.113.0/24"
        for key, inside in (("exceptIPv4", INSIDE_IPV4), ("exceptIPv6", INSIDE_IPV6)):
            whole = chart.values["networkPolicy"]["egress"][key]
            for missing in inside:
                rest = [one for one in whole if one != missing]
                self.refused(
                    helm.HelmRenderError,
                    f"networkPolicy.egress.{key} lacks {missing}: a list of your own takes the place of values.yaml's,"
                    " so copy that one and add to it; what a workspace has to reach goes into networkPolicy.egress.extra",
                    {"networkPolicy": {"egress": {key: rest or ["2001:db8::/32"]}}},
                )
        added = {"networkPolicy": {"egress": {"exceptIPv4": [*INSIDE_IPV4, mine], "exceptIPv6": INSIDE_IPV6}}}
        self.assertFalse(self.reaches("203.0.113.7", added))
        self.assertTrue(self.reaches("203.0.114.7", added))
        # A network that translates its way out to IPv4 needs this one.
        self.assertTrue(self.reaches("64:ff9b::101:101", added))

    def test_a_rule_for_everything_is_refused(self):
        for rule, message in (
            ({}, "missing property 'to'"),
            ({"ports": [{"port": 443}]}, "missing property 'to'"),
            ({"to": []}, "minItems: got 0, want 1"),
            ({"to": None}, "got null, want array"),
            ({"to": [{}]}, "minProperties: got 0, want 1"),
            ({"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "form": []}, "additional properties 'form' not allowed"),
        ):
            with self.subTest(rule):
                self.refused(helm.HelmValuesError, message, {"networkPolicy": {"egress": {"extra": [rule]}}})

    def test_values_decide_what_it_reaches(self):
        def egress(values):
            return objects({"networkPolicy": {"egress": values}})["NetworkPolicy"]["spec"].get("egress")

        self.assertIsNone(egress({"restricted": False}))
        self.assertEqual(len(egress({"internet": False})), 1)
        self.assertEqual(egress(FULL["networkPolicy"]["egress"])[2], FULL["networkPolicy"]["egress"]["extra"][0])

    def test_extra_ports_are_opened_for_the_gateway(self):
        rendered = objects(FULL)
        service = [(port["name"], port["port"], port["targetPort"]) for port in rendered["Service"]["spec"]["ports"]]
        self.assertEqual(service, [("http", 8443, "http"), ("dev", 3000, "dev"), ("storybook", 6006, "storybook")])
        (rule,) = rendered["NetworkPolicy"]["spec"]["ingress"]
        self.assertEqual([port["port"] for port in rule["ports"]], [8443, 3000, 6006])
        self.assertEqual(rule["from"], objects()["NetworkPolicy"]["spec"]["ingress"][0]["from"])
        ports = {port["name"]: port["containerPort"] for port in code_server(FULL)["ports"]}
        self.assertEqual(ports, {"http": 8443, "dev": 3000, "storybook": 6006})

    def test_extra_ports_leave_code_servers_own_alone(self):
        for port in ({"name": "http", "port": 3000}, {"name": "dev", "port": 8443}, {"name": "dev", "port": 80},
                     {"name": "3000", "port": 3000}, {"name": "a" * 16, "port": 3000}, {"name": "dev"}):
            with self.subTest(port), self.assertRaises(helm.HelmValuesError):
                objects({"extraPorts": [port]})


class Nulls(Case):
    """Helm takes away what is null, the default with it, before it asks the schema."""

    # What an operator may take away, and what that leaves.
    ALLOWED = {
        "networkPolicy.gateway.podLabels.app.kubernetes.io/instance": "told by the name alone",
        "resources.requests": "Kubernetes takes the limits",
        "resources.requests.cpu": "Kubernetes takes the limit",
        "resources.requests.memory": "Kubernetes takes the limit",
        "resources.limits.cpu": "as much as the node has free",
    }

    def paths(self, values, prefix=()):
        for key, value in values.items():
            yield (*prefix, key)
            if isinstance(value, dict):
                yield from self.paths(value, (*prefix, key))

    def null(self, path):
        values = None
        for key in reversed(path):
            values = {key: values}
        return values

    def test_null_changes_nothing_or_is_refused(self):
        refused, unchanged, allowed = 0, 0, set()
        for values in ({}, PASSWORD):
            for path in self.paths(chart.values):
                try:
                    found = objects(values, self.null(path))
                except (helm.HelmValuesError, helm.HelmRenderError) as error:
                    # By the chart itself, and not by chance.
                    self.assertRegex(str(error), r"execution error|specifications of the schema")
                    self.assertTrue(any(part in str(error) for part in path[-2:]), (path, str(error)))
                    refused += 1
                    continue
                if found == objects(values):
                    unchanged += 1
                else:
                    allowed.add(".".join(path))
        self.assertEqual(allowed, set(self.ALLOWED))
        self.assertGreater(refused, 40)
        self.assertGreater(unchanged, 20)
        print(f"\nnull: {refused} refused, {unchanged} change nothing, {len(allowed)} allowed")

    def test_a_short_list_is_good_where_it_excepts_nothing(self):
        short = {"exceptIPv4": ["10.0.0.0/8"]}
        for way in ({"internet": False}, {"restricted": False}):
            objects({"networkPolicy": {"egress": short | way}})
        self.refused(helm.HelmRenderError, "networkPolicy.egress.exceptIPv4 lacks", {"networkPolicy": {"egress": short}})

    def test_a_list_whose_items_are_comments_is_refused(self):
        for key in ("exceptIPv4", "exceptIPv6"):
            written = yaml.safe_load(f"networkPolicy:\n  egress:\n    {key}:\n    # - 10.0.0.0/8\n")
            self.refused(helm.HelmValuesError, f"at '/networkPolicy/egress': missing property '{key}'", written)

    def test_protections_are_checked_without_the_schema_too(self):
        gateway, egress = "networkPolicy.gateway", "networkPolicy.egress"
        needed = [
            "auth", "auth.mode", "auth.hashed", "auth.secretKey", "networkPolicy", "networkPolicy.enabled", gateway,
            f"{gateway}.namespaceLabels", f"{gateway}.podLabels", egress, f"{egress}.restricted", f"{egress}.internet",
            f"{egress}.dns", f"{egress}.dns.namespaceLabels", f"{egress}.dns.podLabels", f"{egress}.exceptIPv4",
            f"{egress}.exceptIPv6", "resources", "resources.limits", "resources.limits.memory", "tmpSize", "server",
            "server.bindAddress", "server.folder",
        ]
        with tempfile.TemporaryDirectory() as folder:
            chart.save_dir(folder)
            (Path(folder) / "workspace/values.schema.json").unlink()
            with helm.Chart.load(Path(folder) / "workspace") as bare:

                def message_of(values):
                    with self.assertRaises(helm.HelmRenderError) as caught:
                        bare.render(merged(SUBJECT, values))
                    return str(caught.exception)

                for path in needed:
                    for values in ({}, PASSWORD):
                        message = message_of(merged(values, self.null(path.split("."))))
                        self.assertRegex(
                            message,
                            rf"{re.escape(path)}[.\w]* is missing or empty: null takes a default away; leave the key out,"
                            " or give it a value",
                        )
                for key in ("exceptIPv4", "exceptIPv6"):
                    self.assertIn(f"{egress}.{key} is missing", message_of({"networkPolicy": {"egress": {key: []}}}))
                for rule in ({}, {"to": []}, {"ports": [{"port": 443}]}):
                    self.assertIn(
                        "networkPolicy.egress.extra has a rule without `to`, which would let a workspace connect to anything",
                        message_of({"networkPolicy": {"egress": {"extra": [rule]}}}),
                    )
                for selector, label in (("namespaceLabels", "kubernetes.io/metadata.name"), ("podLabels", "app.kubernetes.io/name")):
                    values = {"networkPolicy": {"gateway": {selector: {label: None, "team": "platform"}}}}
                    self.assertIn(f"{gateway}.{selector} lacks {label}", message_of(values))


class Storage(Case):
    def claim(self, **values):
        return objects({"persistence": values})["PersistentVolumeClaim"]

    def test_size_class_and_modes_are_values(self):
        spec = self.claim(size="50Gi", storageClassName="nfs", accessModes=["ReadWriteMany"])["spec"]
        self.assertEqual(
            spec,
            {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs", "resources": {"requests": {"storage": "50Gi"}}},
        )

    def test_no_class_and_the_empty_class_differ(self):
        self.assertNotIn("storageClassName", self.claim()["spec"])
        self.assertEqual(self.claim(storageClassName="")["spec"]["storageClassName"], "")

    def test_a_claim_of_ones_own_is_used(self):
        rendered = objects({"persistence": {"existingClaim": "mine"}, "snapshots": {"beforeUpgrade": True}})
        self.assertNotIn("PersistentVolumeClaim", rendered)
        volume = rendered["Deployment"]["spec"]["template"]["spec"]["volumes"][0]
        self.assertEqual(volume["persistentVolumeClaim"], {"claimName": "mine"})
        self.assertEqual(rendered["VolumeSnapshot"]["spec"]["source"], {"persistentVolumeClaimName": "mine"})

    def test_a_snapshot_is_restored_into_a_new_claim(self):
        rendered = objects({"persistence": {"claimName": "code-alice-2", "fromSnapshot": "code-alice-r2"}})
        claim = rendered["PersistentVolumeClaim"]
        self.assertEqual(claim["metadata"]["name"], "code-alice-2")
        source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "code-alice-r2"}
        self.assertEqual(claim["spec"]["dataSource"], source)
        self.assertEqual(rendered["Service"]["metadata"]["name"], "code-alice")
        volume = rendered["Deployment"]["spec"]["template"]["spec"]["volumes"][0]
        self.assertEqual(volume["persistentVolumeClaim"], {"claimName": "code-alice-2"})

    def test_a_snapshot_is_taken_before_an_upgrade(self):
        on = {"snapshots": {"beforeUpgrade": True, "volumeSnapshotClassName": "nfs"}}
        self.assertNotIn("VolumeSnapshot", objects())
        snapshot = objects(on, revision=3)["VolumeSnapshot"]
        self.assertEqual(snapshot["apiVersion"], "snapshot.storage.k8s.io/v1")
        self.assertEqual(set(snapshot), {"apiVersion", "kind", "metadata", "spec"})
        self.assertEqual(
            snapshot["spec"], {"volumeSnapshotClassName": "nfs", "source": {"persistentVolumeClaimName": "code-alice"}}
        )
        self.assertRegex(snapshot["metadata"]["name"], r"\Acode-alice-20[0-9]{6}-[0-9]{6}-r3\Z")
        hook = {key: value for key, value in snapshot["metadata"]["annotations"].items() if key.startswith("helm.sh/")}
        self.assertEqual(hook, {"helm.sh/hook": "pre-upgrade"})
        default_class = objects({"snapshots": {"beforeUpgrade": True}})["VolumeSnapshot"]["spec"]
        self.assertNotIn("volumeSnapshotClassName", default_class)


class Server(Case):
    def test_a_workspace_can_be_stopped(self):
        self.assertEqual(objects({"replicas": 0})["Deployment"]["spec"]["replicas"], 0)
        for replicas in (2, -1, "1"):
            with self.subTest(replicas), self.assertRaises(helm.HelmValuesError):
                objects({"replicas": replicas})

    def test_the_role_picks_the_image(self):
        self.assertIn("/workspace-backend:", code_server()["image"])
        self.assertIn("/workspace-frontend:", code_server({"role": "frontend"})["image"])
        self.refused(helm.HelmRenderError, 'role "data" has no image: images has backend, frontend', {"role": "data"})
        mine = {"role": "data", "images": {"data": {"repository": "registry.example.com/data", "tag": "1"}}}
        self.assertEqual(code_server(mine)["image"], "registry.example.com/data:1")

    def test_the_image_has_the_tag_and_then_the_digest(self):
        self.assertTrue(code_server(FULL)["image"].endswith(":4.139.1-1@sha256:" + "0" * 64))

    def test_an_idle_server_ends_only_if_told_to(self):
        def flags(seconds):
            args = code_server({"server": {"idleTimeoutSeconds": seconds}})["args"]
            return [arg for arg in args if arg.startswith("--idle")]

        self.assertEqual(flags(0), [])
        self.assertEqual(flags(1_000_000), ["--idle-timeout-seconds=1000000"])
        # code-server refuses to start with 60 or less.
        for seconds in (60, 1, -1, "3600"):
            with self.subTest(seconds), self.assertRaises(helm.HelmValuesError):
                flags(seconds)

    def test_the_folder_is_the_last_argument_and_is_made(self):
        for folder in ("/home/coder", "/home/coder/projects", "/home/coder/a b", "/home/coder/$(id)\"'{{ . }}"):
            template = pod({"server": {"folder": folder}})
            self.assertEqual(template["containers"][0]["args"][-1], folder)
            self.assertEqual(template["initContainers"][0]["command"][-2:], ["home", folder])
        for folder in ("/etc", "/home/coder/", "projects", "/home/coder/a\nb", "/home/coderx"):
            with self.subTest(folder), self.assertRaises(helm.HelmValuesError):
                objects({"server": {"folder": folder}})

    def test_environment_is_passed_on(self):
        container = code_server(FULL)
        self.assertEqual(container["env"], [{"name": "HOME", "value": "/home/coder"}, *FULL["env"]])
        self.assertEqual(container["envFrom"], FULL["envFrom"])

    def test_values_decide_where_the_pod_runs(self):
        template = pod(FULL)
        for key in ("serviceAccountName", "runtimeClassName", "nodeSelector", "tolerations", "affinity", "imagePullSecrets"):
            self.assertEqual(template[key], FULL[key])

    def test_a_misspelt_value_is_refused(self):
        self.refused(helm.HelmValuesError, "additional properties 'replica' not allowed", {"replica": 0})
        self.refused(
            helm.HelmValuesError, "additional properties 'enable' not allowed", {"networkPolicy": {"enable": False}}
        )


class ExtraPorts(Case):
    """The second set of routes that the README makes for a user's own server."""

    def test_the_commands_make_routes_without_a_finding(self):
        page = (CHART / "README.md").read_text(encoding="utf-8")
        (block,) = [block for block in re.findall(r"```sh\n(.*?)```", page, re.S) if "dev-port" in block]
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(REPOSITORY / "apisix-conf", Path(folder, "apisix-conf"))
            program = Path(folder, "kube-coders")
            os.symlink(KUBE_CODERS, program)
            environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
            made = subprocess.run(
                ["bash", "-eu", "-c", block], cwd=folder, env=environment, text=True, capture_output=True, check=False
            )
            self.assertEqual((made.returncode, made.stdout), (0, "0 errors, 0 warnings in 3 files\n"), made.stderr)
            objects = {path.stem: json.loads(path.read_text()) for path in Path(folder, "dev-port").iterdir()}
        self.assertEqual({one["id"] for one in objects.values()}, {"dev", "dev-login"})
        conf = objects["service"]["plugins"]["ext-plugin-pre-req"]["conf"][0]["value"]
        self.assertEqual(json.loads(conf)["upstream"], "http://code-{sub}.code-server.svc.cluster.local:3000")
        for name in ("route-workspaces", "route-workspaces-login"):
            self.assertEqual(objects[name]["host"], "dev.coders.example.com")
            self.assertEqual(objects[name]["service_id"], "dev")


class Subjects(Case):
    def test_an_invalid_subject_is_refused(self):
        for values, message in (
            ({}, "at '/user': missing property 'subject'"),
            ({"user": {}}, "at '/user': missing property 'subject'"),
            ({"user": {"subject": None}}, "at '/user/subject': got null, want string"),
            ({"user": {"subject": ""}}, "at '/user/subject': minLength: got 0, want 1"),
            ({"user": {"subject": "a" * 256}}, "at '/user/subject': maxLength: got 256, want 255"),
            ({"user": {"subject": 7}}, "at '/user/subject': got number, want string"),
            ({"user": {"subject": True}}, "at '/user/subject': got boolean, want string"),
            ({"user": {"subject": ["a"]}}, "at '/user/subject': got array, want string"),
            ({"user": {"subject": {"a": 1}}}, "at '/user/subject': got object, want string"),
        ):
            with self.subTest(values), self.assertRaises(helm.HelmValuesError) as caught:
                chart.render(values)
            self.assertIn(message, str(caught.exception))

    def test_a_hostile_subject_stays_data(self):
        self.assertGreater(len(HOSTILE), 50)
        checked = 0
        for subject in HOSTILE:
            files = texts({"user": {"subject": subject}})
            self.assertEqual(len(files), 5)
            notes = files.pop("NOTES.txt")
            self.assertEqual(len(notes.splitlines()), len(texts(SUBJECT)["NOTES.txt"].splitlines()), repr(subject))
            for path, text in files.items():
                (item,) = yaml.safe_load_all(text)
                self.assertEqual(item["metadata"]["annotations"]["kube-coders/subject"], subject, path)
                expected = objects()[item["kind"]]
                self.assertEqual(self.shape(item), self.shape(expected), path)
                checked += 1
        print(f"\n{len(HOSTILE)} hostile subjects: {checked} manifests differ in nothing but name and annotation")

    def shape(self, item):
        """A manifest without what the subject is meant to change."""
        name = re.escape(item["metadata"]["name"])
        text = re.sub(rf'"{name}"', '"NAME"', json.dumps(item, sort_keys=True))
        return re.sub(r'"kube-coders/subject": "(\\.|[^"\\])*"', '"SUBJECT"', text)

    def test_other_text_is_never_a_template(self):
        env = [{"name": "A", "value": "{{ .Values }}"}, {"name": "B", "value": "a\n- b: c"}]
        self.assertEqual(code_server({"env": env})["env"][1:], env)

    def test_the_notes_tell_name_and_deletion(self):
        notes = texts(merged(SUBJECT, {"user": {"subject": "Alice"}}))["NOTES.txt"]
        for line in (
            'The workspace of sub "Alice":',
            "http://code-{sub}.code-server.svc.cluster.local:8443.",
            "http://code-alice---3bc51062973c458d5a6f2d8d64a02324.code-server.svc:8443/healthz",
            "helm uninstall a-release --namespace code-server",
            "kubectl --namespace code-server delete persistentvolumeclaim code-alice---3bc51062973c458d5a6f2d8d64a02324",
        ):
            self.assertIn(line, notes)


class Home(Case):
    """The init container's script, run by a shell."""

    def run_script(self, home, folder, **options):
        init = pod()["initContainers"][0]
        self.assertEqual(init["command"][:2], ["/bin/sh", "-euc"])
        command = [*init["command"][:-1], folder]
        return subprocess.run(command, env={"HOME": home, "PATH": os.environ["PATH"]}, capture_output=True, text=True, **options)

    def test_a_new_home_gets_its_folder_and_files(self):
        with tempfile.TemporaryDirectory() as home:
            for _ in range(2):
                result = self.run_script(home, f"{home}/a b/c")
                self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertTrue(Path(home, "a b/c").is_dir())
            expected = {file.name for file in Path("/etc/skel").glob(".*") if file.name in (".bashrc", ".bash_logout", ".profile")}
            self.assertEqual({file.name for file in Path(home).iterdir()}, expected | {"a b"})

    def test_files_that_are_there_stay(self):
        with tempfile.TemporaryDirectory() as home:
            Path(home, ".bashrc").write_text("mine")
            self.assertEqual(self.run_script(home, home).returncode, 0)
            self.assertEqual(Path(home, ".bashrc").read_text(), "mine")

    def test_a_volume_that_cannot_be_written_is_reported(self):
        with tempfile.TemporaryDirectory() as home:
            os.chmod(home, 0o555)
            other = {"user": 65534} if os.getuid() == 0 else {}
            result = self.run_script(home, home, **other)
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, r"belongs to uid \d+, gid \d+, mode 555, and uid \d+ can't write there: see the chart's README")


class Words(Case):
    def test_every_value_is_in_the_readme(self):
        readme = (CHART / "README.md").read_text()

        def paths(values, prefix=""):
            for key, value in values.items():
                if isinstance(value, dict) and value and not prefix.endswith(("Labels.", "resources.", "images.")):
                    yield from paths(value, f"{prefix}{key}.")
                else:
                    yield f"{prefix}{key}"

        named = {re.sub(r"Labels\..*", "Labels", re.sub(r"^(resources|images)\..*", r"\1", path)) for path in paths(chart.values)}
        self.assertGreater(len(named), 40)
        for path in sorted(named):
            self.assertIn(f"`{path}`", readme)


if __name__ == "__main__":
    unittest.main(verbosity=2)
