"""examples/kubernetes and apisix-conf/ingress: manifests are valid, and what they allow."""

import copy
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import jsonschema
import kubernetes_validate
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from kubernetes_manifests import (
    CHART,
    CLUSTER_WIDE,
    FOLDER,
    GATEWAY,
    NAMESPACES,
    OTHERWISE,
    ROOT,
    VERSIONS,
    Case,
    check_object,
    find,
    manifest_files,
    manifests,
    merged,
    pods,
    read,
)

KUBE_CODERS = os.environ.get("KUBE_CODERS", str(ROOT / "target" / "debug" / "kube-coders"))


class Manifests(Case):
    def test_every_object_is_of_a_known_kind_and_valid(self):
        kinds = {}
        for path, item in self.not_empty(manifests()):
            with self.subTest(path=path, name=item["metadata"]["name"]):
                for version in VERSIONS:
                    check_object(item, version)
                kinds[item["kind"]] = kinds.get(item["kind"], 0) + 1
        for kind in [
            "NetworkPolicy",
            "StorageClass",
            "VolumeSnapshot",
            "Certificate",
            "ApisixRoute",
            "Deployment",
            "StatefulSet",
        ]:
            self.assertIn(kind, kinds)
        print(f"objects: {sum(kinds.values())} of {len(kinds)} kinds, for Kubernetes {' and '.join(VERSIONS)}")

    def test_a_wrong_object_is_no_valid_one(self):
        right = find("Deployment", "keycloak", "keycloak")
        check_object(right, VERSIONS[0])
        wrong = copy.deepcopy(right)
        wrong["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
        with self.assertRaises(kubernetes_validate.ValidationError):
            check_object(wrong, VERSIONS[0])
        with self.assertRaises(kubernetes_validate.SchemaNotFoundError):
            check_object({**right, "kind": "Deploymint"}, VERSIONS[0])
        with self.assertRaises(kubernetes_validate.SchemaNotFoundError):
            check_object({"apiVersion": "apisix.apache.org/v2", "kind": "ApisixRout", "metadata": {}}, VERSIONS[0])
        for kind, name, namespace in [
            ("ApisixRoute", "keycloak", "keycloak"),
            ("Certificate", "coders-tls", "apisix"),
            ("VolumeSnapshot", "storage-test", "code-server"),
        ]:
            wrong = copy.deepcopy(find(kind, name, namespace))
            wrong["spec"]["hostz"] = []
            with self.assertRaises(jsonschema.ValidationError):
                check_object(wrong, VERSIONS[0])

    def test_every_file_is_accounted_for(self):
        for path in OTHERWISE:
            self.assertTrue((FOLDER / path).is_file(), path)
        for path in self.not_empty(manifest_files()):
            for item in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                self.assertTrue(item is None or {"apiVersion", "kind", "metadata"} <= set(item), path)
        self.assertFalse(list(FOLDER.rglob("*.yml")))

    def test_objects_say_their_namespace_and_whose_they_are(self):
        seen = set()
        for path, item in self.not_empty(manifests()):
            kind, metadata = item["kind"], item["metadata"]
            with self.subTest(path=path, name=metadata["name"]):
                self.assertEqual("namespace" in metadata, kind not in CLUSTER_WIDE)
                if "namespace" in metadata:
                    self.assertIn(metadata["namespace"], NAMESPACES | {"default", "cert-manager"})
                if path.startswith("examples/"):
                    self.assertEqual(metadata["labels"]["app.kubernetes.io/part-of"], "kube-coders")
                # Of the two modes, one is applied.
                if not path.endswith("/direct.yaml"):
                    self.assertNotIn((kind, metadata.get("namespace"), metadata["name"]), seen)
                    seen.add((kind, metadata.get("namespace"), metadata["name"]))

    def test_namespaces_enforce_the_strictest_level(self):
        found = {
            item["metadata"]["name"]: item["metadata"]["labels"]
            for _, item in manifests()
            if item["kind"] == "Namespace"
        }
        self.assertEqual(set(found), NAMESPACES)
        for name, labels in found.items():
            self.assertEqual(labels["pod-security.kubernetes.io/enforce"], "restricted", name)

    def test_references_lead_to_something(self):
        everything = [item for _, item in manifests()]
        names = {(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in everything}
        looked_at = 0
        for path, item in manifests():
            namespace, spec = item["metadata"].get("namespace"), item.get("spec", {})
            with self.subTest(path=path, name=item["metadata"]["name"]):
                wanted = []
                if item["kind"] == "PersistentVolumeClaim":
                    wanted.append(("StorageClass", None, spec["storageClassName"]))
                    if "dataSource" in spec:
                        wanted.append((spec["dataSource"]["kind"], namespace, spec["dataSource"]["name"]))
                if item["kind"] == "VolumeSnapshot":
                    wanted.append(("VolumeSnapshotClass", None, spec["volumeSnapshotClassName"]))
                    wanted.append(("PersistentVolumeClaim", namespace, spec["source"]["persistentVolumeClaimName"]))
                if item["kind"] == "StatefulSet":
                    wanted.append(("Service", namespace, spec["serviceName"]))
                if item["kind"] == "Certificate":
                    issuer = spec["issuerRef"]
                    wanted.append(
                        (issuer["kind"], None if issuer["kind"] == "ClusterIssuer" else namespace, issuer["name"])
                    )
                if item["kind"] == "ApisixRoute":
                    for rule in spec["http"]:
                        wanted += [
                            ("Service", namespace, backend["serviceName"]) for backend in rule.get("backends", [])
                        ]
                        # An upstream's settings are those of the ApisixUpstream of the Service's name.
                        wanted += [
                            ("ApisixUpstream", namespace, backend["serviceName"])
                            for backend in rule.get("backends", [])
                        ]
                        wanted += [
                            ("ApisixUpstream", namespace, upstream["name"]) for upstream in rule.get("upstreams", [])
                        ]
                if item["kind"] == "Pod":
                    wanted += [
                        ("PersistentVolumeClaim", namespace, volume["persistentVolumeClaim"]["claimName"])
                        for volume in spec.get("volumes", [])
                        if "persistentVolumeClaim" in volume
                    ]
                for one in wanted:
                    self.assertIn(one, names)
                looked_at += len(wanted)
        self.assertGreater(looked_at, 10)

    def test_services_lead_to_ports_of_pods(self):
        for path, item in self.not_empty((path, item) for path, item in manifests() if item["kind"] == "Service"):
            with self.subTest(path=path, name=item["metadata"]["name"]):
                selector = item["spec"]["selector"].items()
                matching = [
                    spec
                    for _, namespace, labels, spec in pods()
                    if namespace == item["metadata"]["namespace"] and selector <= labels.items()
                ]
                self.assertEqual(len(matching), 1)
                ports = {port["name"] for container in matching[0]["containers"] for port in container["ports"]}
                self.assertLessEqual({port["targetPort"] for port in item["spec"]["ports"]}, ports)


class Security(Case):
    # Builds its settings into the image's folder when it starts, and the manifest says so.
    WRITABLE_ROOT = {"keycloak"}

    def check_pod(self, spec, restricted_only=False):
        context = spec["securityContext"]
        self.assertIs(context["runAsNonRoot"], True)
        self.assertGreater(context["runAsUser"], 0)
        self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"})
        for refused in ("hostNetwork", "hostPID", "hostIPC"):
            self.assertFalse(spec.get(refused))
        for volume in spec.get("volumes", []):
            kinds = set(volume) - {"name"}
            self.assertLessEqual(kinds, {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}, volume["name"])
        for container in self.not_empty(spec.get("initContainers", []) + spec["containers"]):
            inner = container["securityContext"]
            self.assertIs(inner["allowPrivilegeEscalation"], False)
            self.assertEqual(inner["capabilities"], {"drop": ["ALL"]})
            self.assertFalse(inner.get("privileged"))
            self.assertFalse([port for port in container.get("ports", []) if "hostPort" in port])
            if not restricted_only:
                self.assertEqual(inner["readOnlyRootFilesystem"], container["name"] not in self.WRITABLE_ROOT)
            self.assertIn("memory", container["resources"]["limits"])
            self.assertEqual(set(container["resources"]["requests"]), {"cpu", "memory"})
            self.check_image(container["image"])

    def check_image(self, image):
        name, _, tag = image.rpartition(":")
        self.assertTrue(name and "/" not in tag, f"{image}: no tag")
        self.assertRegex(tag, r"[0-9]+\.[0-9]+", image)
        self.assertNotIn("latest", tag)

    def test_pods_are_restricted_and_bounded(self):
        for place, _, labels, spec in self.not_empty(pods()):
            with self.subTest(place):
                self.assertIs(spec["automountServiceAccountToken"], False)
                self.check_pod(spec)
                self.assertIn("app.kubernetes.io/name", labels)

    def test_each_server_is_probed(self):
        for path, item in self.not_empty((p, i) for p, i in manifests() if i["kind"] in ("Deployment", "StatefulSet")):
            for container in item["spec"]["template"]["spec"]["containers"]:
                with self.subTest(path=path, container=container["name"]):
                    self.assertLessEqual({"startupProbe", "readinessProbe", "livenessProbe"}, set(container))

    def test_no_file_contains_a_secret(self):
        self.assertNotIn("Secret", {item["kind"] for _, item in self.not_empty(manifests())})
        looked_at = 0
        for _, _, _, spec in pods():
            for container in spec["containers"]:
                for variable in container.get("env", []):
                    looked_at += 1
                    if re.search(r"PASSWORD$|SECRET|TOKEN|_KEY$", variable["name"]):
                        self.assertEqual(set(variable), {"name", "valueFrom"}, variable["name"])
                        self.assertEqual(set(variable["valueFrom"]), {"secretKeyRef"})
        self.assertGreater(looked_at, 10)
        texts = [path for path in FOLDER.rglob("*") if path.is_file() and CHART not in path.parents]
        for path in self.not_empty(texts):
            text = path.read_text(encoding="utf-8")
            with self.subTest(str(path)):
                self.assertNotRegex(text, r"-----BEGIN [A-Z ]*(PRIVATE KEY|CERTIFICATE)-----")
                self.assertNotRegex(text, r"(?i)(password|secret)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/]{16,}\b")

    def policies(self, namespace):
        return {
            item["metadata"]["name"]: item["spec"]
            for _, item in manifests()
            if item["kind"] == "NetworkPolicy" and item["metadata"]["namespace"] == namespace
        }

    def test_only_named_pods_are_reached(self):
        for namespace, name, types in [
            ("keycloak", "default-deny", ["Ingress", "Egress"]),
            ("code-server", "default-deny", ["Ingress", "Egress"]),
            ("apisix", "default-deny-ingress", ["Ingress"]),
        ]:
            self.assertEqual(self.policies(namespace)[name], {"podSelector": {}, "policyTypes": types}, namespace)
        # What a policy adds is for pods that exist, by the labels they have.
        for namespace in NAMESPACES:
            known = [labels for _, where, labels, _ in pods() if where == namespace] + [GATEWAY]
            for name, spec in self.policies(namespace).items():
                selector = spec["podSelector"].get("matchLabels", {})
                self.assertTrue([labels for labels in known if selector.items() <= labels.items()], (namespace, name))

    def test_only_the_gateway_reaches_keycloak_and_only_keycloak_its_database(self):
        policies = self.policies("keycloak")
        self.assertEqual(set(policies), {"default-deny", "postgres", "keycloak"})
        self.assertEqual(
            policies["postgres"]["ingress"],
            [
                {
                    "from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "keycloak"}}}],
                    "ports": [{"protocol": "TCP", "port": 5432}],
                }
            ],
        )
        self.assertEqual(
            policies["keycloak"]["ingress"],
            [
                {
                    # One peer with both: a pod with the labels in that namespace.
                    "from": [
                        {
                            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apisix"}},
                            "podSelector": {"matchLabels": GATEWAY},
                        }
                    ],
                    "ports": [{"protocol": "TCP", "port": 8443}],
                }
            ],
        )
        self.assertNotIn("egress", policies["postgres"])
        self.assertEqual(len(policies["keycloak"]["egress"]), 2)

    def test_only_the_gateway_reaches_etcd_and_only_the_controller_its_admin_port(self):
        policies = self.policies("apisix")
        self.assertEqual(set(policies), {"default-deny-ingress", "gateway", "gateway-with-admin-api", "etcd"})
        self.assertEqual(
            policies["etcd"]["ingress"],
            [
                {
                    "from": [{"podSelector": {"matchLabels": GATEWAY}}],
                    "ports": [{"protocol": "TCP", "port": 2379}],
                }
            ],
        )
        self.assertEqual(
            [port["port"] for rule in policies["gateway"]["ingress"] for port in rule["ports"]], [9443, 9080]
        )
        # If the ingress controller writes the routes, nothing else does.
        browsers, controller = policies["gateway-with-admin-api"]["ingress"]
        self.assertEqual(policies["gateway-with-admin-api"]["podSelector"], {"matchLabels": GATEWAY})
        self.assertEqual(browsers, policies["gateway"]["ingress"][0])
        self.assertEqual(
            controller,
            {
                "from": [
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-apisix"}},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "apisix-ingress-controller"}},
                    }
                ],
                "ports": [{"protocol": "TCP", "port": 9180}],
            },
        )

    def test_the_chart_admits_the_same_gateway(self):
        gateway = yaml.safe_load(read("examples/kubernetes/charts/workspace/values.yaml"))["networkPolicy"]["gateway"]
        self.assertEqual(gateway, {"namespaceLabels": {"kubernetes.io/metadata.name": "apisix"}, "podLabels": GATEWAY})


class Storage(Case):
    def exports(self):
        for line in read("examples/kubernetes/storage/kube-coders.exports").splitlines():
            if line and not line.startswith("#"):
                path, _, rest = line.partition(" ")
                client, options = re.fullmatch(r"\s*(\S+)\(([^)]*)\)", rest).groups()
                yield path, client, options.split(",")

    def test_root_of_a_node_becomes_the_user_that_writes(self):
        users = {"/srv/nfs/workspaces": 1000, "/srv/nfs/postgres": 999}
        found = {path: options for path, _, options in self.exports()}
        self.assertEqual(set(found), set(users))
        for path, options in found.items():
            self.assertIn("root_squash", options)
            self.assertIn("sync", options)
            self.assertFalse({"no_root_squash", "insecure", "async", "all_squash"} & set(options))
            self.assertIn(f"anonuid={users[path]}", options)
            self.assertIn(f"anongid={users[path]}", options)
        postgres = find("StatefulSet", "postgres", "keycloak")["spec"]["template"]["spec"]["securityContext"]
        self.assertEqual((postgres["runAsUser"], postgres["runAsGroup"]), (999, 999))
        self.assertEqual(find("Pod", "storage-test", "code-server")["spec"]["securityContext"]["runAsUser"], 1000)
        deployment = read("examples/kubernetes/charts/workspace/templates/deployment.yaml")
        self.assertIn("runAsUser: 1000\n", deployment)
        self.assertIn("runAsGroup: 1000\n", deployment)

    def test_classes_open_nothing_to_all_users(self):
        shares = {path for path, _, _ in self.exports()}
        for path, item in self.not_empty((p, i) for p, i in manifests() if i["kind"] == "StorageClass"):
            with self.subTest(path):
                self.assertEqual(item["provisioner"], "nfs.csi.k8s.io")
                # What the driver of that version takes.
                self.assertLessEqual(
                    set(item["parameters"]), {"server", "share", "subDir", "mountPermissions", "onDelete"}
                )
                self.assertEqual(item["parameters"]["mountPermissions"], "0")
                self.assertEqual(item["parameters"]["onDelete"], "archive")
                self.assertIn("${pv.metadata.name}", item["parameters"]["subDir"])
                self.assertIn(item["parameters"]["share"], shares)
                self.assertLessEqual({"hard", "nfsvers=4.2", "nosuid", "nodev"}, set(item["mountOptions"]))
        driver = yaml.safe_load(read("examples/kubernetes/storage/csi-driver-nfs-values.yaml"))
        self.assertIs(driver["feature"]["enableFSGroupPolicy"], False)

    def test_one_network_reaches_the_server(self):
        (network,) = {client for _, client, _ in self.exports()}
        self.assertIn(
            f"tcp dport 2049 ip saddr {network} accept\n    tcp dport 2049 drop",
            read("examples/kubernetes/storage/kube-coders.nft"),
        )

    def test_the_snapshot_controller_is_pinned(self):
        built = yaml.safe_load(read("examples/kubernetes/storage/snapshot-controller/kustomization.yaml"))
        (image,) = built["images"]
        for resource in self.not_empty(built["resources"]):
            self.assertTrue(resource.endswith("?ref=" + image["newTag"]), resource)


class Keycloak(Case):
    def realms(self):
        return [
            json.loads(read(path))
            for path in ("examples/kubernetes/keycloak/dev-realm.json", "examples/compose/keycloak/realm-dev.json")
        ]

    def test_the_realm_is_that_of_compose_but_for_hosts_and_users(self):
        here, there = self.realms()
        self.assertNotIn("users", here)
        self.assertTrue(there.pop("users"))
        hosts = set(re.findall(r"https://[^/\"]+", json.dumps(there)))
        self.assertEqual(len(hosts), 1, hosts)
        self.assertEqual(here, json.loads(json.dumps(there).replace(hosts.pop(), "https://coders.example.com")))
        (client,) = here["clients"]
        self.assertEqual(client["secret"], "${KEYCLOAK_CLIENT_SECRET}")
        self.assertEqual(client["redirectUris"], ["https://coders.example.com/.apisix/redirect"])

    def test_the_config_map_has_the_realm_where_keycloak_reads_it(self):
        kustomization = yaml.safe_load(read("examples/kubernetes/keycloak/kustomization.yaml"))
        for resource in self.not_empty(kustomization["resources"]):
            self.assertTrue((FOLDER / "keycloak" / resource).is_file(), resource)
        (generator,) = kustomization["configMapGenerator"]
        # Keycloak wants REALM-realm.json.
        self.assertEqual(generator["files"], [f"{self.realms()[0]['realm']}-realm.json"])
        spec = find("Deployment", "keycloak", "keycloak")["spec"]["template"]["spec"]
        (volume,) = [volume for volume in spec["volumes"] if "configMap" in volume]
        self.assertEqual(volume["configMap"], {"name": generator["name"]})
        (mount,) = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
        self.assertEqual(mount["mountPath"], "/opt/keycloak/data/import/" + generator["files"][0])
        self.assertEqual(mount["subPath"], generator["files"][0])
        self.assertEqual(spec["containers"][0]["args"], ["start", "--import-realm"])

    def test_kustomize_builds_it(self):
        kubectl = shutil.which("kubectl")
        if not kubectl:
            if os.environ.get("KUBE_CODERS_NO_SKIP"):
                self.fail("kubectl is not installed")
            self.skipTest("kubectl is not installed")
        built = subprocess.run(
            [kubectl, "kustomize", str(FOLDER / "keycloak")], text=True, capture_output=True, check=False
        )
        self.assertEqual(built.returncode, 0, built.stderr)
        objects = list(yaml.safe_load_all(built.stdout))
        for item in self.not_empty(objects):
            check_object(item, VERSIONS[0])
        (config,) = [item for item in objects if item["kind"] == "ConfigMap"]
        self.assertEqual((config["metadata"]["name"], config["metadata"]["namespace"]), ("keycloak-realm", "keycloak"))
        self.assertEqual(json.loads(config["data"]["dev-realm.json"]), self.realms()[0])
        self.assertEqual(
            len(objects), 1 + sum(path.startswith("examples/kubernetes/keycloak/") for path, _ in manifests())
        )

    def test_production_mode_under_one_public_name_with_tls(self):
        container = find("Deployment", "keycloak", "keycloak")["spec"]["template"]["spec"]["containers"][0]
        plain = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
        self.assertEqual(plain["KC_HOSTNAME"], "https://key.example.com")
        self.assertEqual(plain["KC_PROXY_HEADERS"], "xforwarded")
        self.assertEqual(plain["KC_DB"], "postgres")
        self.assertIn("KC_HTTPS_CERTIFICATE_FILE", plain)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            self.assertEqual(container[probe]["httpGet"]["port"], "management")
        self.assertEqual(
            {port["name"]: port["containerPort"] for port in container["ports"]}, {"https": 8443, "management": 9000}
        )

    def test_the_same_versions_run_in_compose(self):
        services = yaml.safe_load(read("examples/compose/compose.yaml"))["services"]
        there = {service["image"].removeprefix("docker.io/library/") for service in services.values()}
        for kind, name in [("Deployment", "keycloak"), ("StatefulSet", "postgres")]:
            image = find(kind, name, "keycloak")["spec"]["template"]["spec"]["containers"][0]["image"]
            self.assertIn(image.removeprefix("docker.io/library/"), there)


class Gateway(Case):
    def routes(self, path="examples/kubernetes/gateway/apisix.yaml"):
        return yaml.safe_load(read(path))

    WAYS = ("beside", "spawned")
    DASHBOARD = "examples/kubernetes/gateway/dashboard/values.yaml"

    def shared_values(self, way):
        return yaml.safe_load(read(f"apisix-conf/helm/values-{way}.yaml"))

    def values(self, way, *more):
        own = [f"examples/kubernetes/gateway/values-{way}.yaml", *more]
        return merged(self.shared_values(way), *[yaml.safe_load(read(path)) for path in own])

    def nginx_config(self, values):
        """Where each way says what nginx is told."""
        custom = values["apisix"].get("fullCustomConfig")
        return custom["config"]["nginx_config"] if custom else values["apisix"]["nginx"]

    def test_the_routes_are_the_shared_ones_and_one_to_keycloak(self):
        here, there = self.routes(), self.routes("apisix-conf/standalone/apisix.yaml")
        (service,) = here["services"]
        (conf,) = service["plugins"]["ext-plugin-pre-req"]["conf"]
        value = json.loads(conf["value"])
        self.assertEqual(value["identity"].pop("ca_file"), "/usr/local/apisix/conf/ssl/ca.crt")
        (shared,) = there["services"]
        (shared_conf,) = shared["plugins"]["ext-plugin-pre-req"]["conf"]
        self.assertEqual(value, json.loads(shared_conf["value"]))
        conf["value"] = shared_conf["value"]
        extra = {"routes": here["routes"].pop(), "ssls": here["ssls"].pop()}
        self.assertEqual(extra["routes"]["id"], "keycloak")
        self.assertEqual(extra["ssls"]["id"], "key")
        self.assertEqual(here, there)
        self.assertTrue(read("examples/kubernetes/gateway/apisix.yaml").endswith("\n#END\n"))

    def test_the_plugin_takes_the_conf(self):
        (service,) = self.routes()["services"]
        (conf,) = service["plugins"]["ext-plugin-pre-req"]["conf"]
        with tempfile.TemporaryDirectory() as folder:
            made = subprocess.run(
                [FOLDER / "tls" / "certificates.sh", folder], text=True, capture_output=True, check=False
            )
            self.assertEqual(made.returncode, 0, made.stderr)
            text = conf["value"].replace("/usr/local/apisix/conf/ssl/ca.crt", folder + "/ca.crt")
            self.assertNotEqual(text, conf["value"])
            explained = lambda text: subprocess.run(
                [KUBE_CODERS, "explain", "--conf", text, "--userinfo", '{"sub": "alice"}'],
                text=True,
                capture_output=True,
                check=False,
            )
            # It refuses a userinfo without a token, which is what `verified` is for.
            self.assertEqual(explained(text).returncode, 1, explained(text).stderr)
            self.assertEqual(explained(text.replace('"ca_file"', '"ca_fil"')).returncode, 2)

    def test_of_keycloak_only_the_realm_and_its_pages_are_outside(self):
        (route,) = [route for route in self.routes()["routes"] if route["id"] == "keycloak"]
        self.assertEqual(route["uris"], ["/realms/dev/*", "/resources/*"])
        self.assertEqual(route["host"], "key.example.com")
        self.assertEqual(route["upstream"]["scheme"], "https")
        ((node, _),) = route["upstream"]["nodes"].items()
        name, namespace, *domain = node.partition(":")[0].split(".")
        self.assertEqual(domain, ["svc", "cluster", "local"])
        ports = [port["port"] for port in find("Service", name, namespace)["spec"]["ports"]]
        self.assertIn(int(node.partition(":")[2]), ports)
        # The same for the ingress controller.
        (rule,) = find("ApisixRoute", "keycloak", "keycloak")["spec"]["http"]
        match = dict(rule["match"])
        # What else there is, test_keycloak_route.py compares.
        self.assertEqual(len(match.pop("exprs")), len(route["vars"]))
        self.assertEqual(match, {"hosts": [route["host"]], "paths": route["uris"]})
        self.assertEqual(rule["backends"], [{"serviceName": "keycloak", "servicePort": 8443}])
        self.assertEqual(find("ApisixUpstream", "keycloak", "keycloak")["spec"]["scheme"], "https")

    def test_the_dashboards_objects_are_the_same(self):
        routes = self.routes()
        for path, kind, name in [
            ("route-keycloak", "routes", "keycloak"),
            ("ssl-coders", "ssls", "coders"),
            ("ssl-key", "ssls", "key"),
        ]:
            (wanted,) = [one for one in routes[kind] if one["id"] == name]
            found = json.loads(read(f"examples/kubernetes/gateway/dashboard/{path}.json"))
            self.assertEqual({"id": name, **found}, wanted)

    def test_values_make_a_restricted_pod_with_all_that_the_routes_name(self):
        named = set(re.findall(r"\$env://(\w+)", read("examples/kubernetes/gateway/apisix.yaml")))
        (service,) = self.routes()["services"]
        authority = json.loads(service["plugins"]["ext-plugin-pre-req"]["conf"][0]["value"])["identity"]["ca_file"]
        for way, more in [("beside", ()), ("spawned", ()), ("spawned", (self.DASHBOARD,))]:
            with self.subTest(way=way, more=more):
                values = self.values(way, *more)
                gateway = {
                    "name": "apisix",
                    "securityContext": values["securityContext"],
                    "resources": values["resources"],
                    "image": f"{values['image']['repository']}:{values['image']['tag']}",
                }
                pod = {
                    "securityContext": values["podSecurityContext"],
                    "initContainers": values.get("extraInitContainers", []),
                    "containers": [gateway, *values.get("extraContainers", [])],
                    "volumes": values["extraVolumes"],
                }
                Security.check_pod(self, pod, restricted_only=True)
                self.assertEqual({variable["name"] for variable in values["extraEnvVars"]}, named)
                self.assertEqual(set(self.nginx_config(values)["envs"]), named)
                # The chart mounts that Secret's file in conf/ssl of the gateway.
                ssl = values["apisix"]["ssl"]
                self.assertEqual((ssl["existingCASecret"], ssl["certCAFilename"]), ("kube-coders-ca", "ca.crt"))
                self.assertEqual(authority, "/usr/local/apisix/conf/ssl/" + ssl["certCAFilename"])
                volumes = {volume["name"] for volume in values["extraVolumes"]}
                for container in values.get("extraContainers", []) + values.get("extraInitContainers", []):
                    self.assertLessEqual({mount["name"] for mount in container["volumeMounts"]}, volumes)
                if way == "beside":
                    # The runner is in a container of its own, and reads the file there.
                    (runner,) = values["extraContainers"]
                    mounts = {mount["name"]: mount["mountPath"] for mount in runner["volumeMounts"]}
                    self.assertEqual(mounts["kube-coders-ca"] + "/ca.crt", authority)
                    config = values["apisix"]["fullCustomConfig"]["config"]
                    self.assertEqual(config["apisix"]["ssl"]["ssl_trusted_certificate"], authority)

    check_image = Security.check_image

    def test_values_differ_from_the_shared_ones_where_they_must(self):
        for way, kind in [("beside", "extraContainers"), ("spawned", "extraInitContainers")]:
            with self.subTest(way):
                values, shared = self.values(way), self.shared_values(way)
                (container,), (shared_container,) = values[kind], shared[kind]
                self.assertEqual(container["image"], "registry.example.com/kube-coders/" + shared_container["image"])
                container["image"] = shared_container["image"]
                container["volumeMounts"] = [
                    mount for mount in container["volumeMounts"] if mount["name"] != "kube-coders-ca"
                ]
                values["extraVolumes"] = [
                    volume for volume in values["extraVolumes"] if volume["name"] != "kube-coders-ca"
                ]
                self.assertEqual(values["extraEnvVars"][:-2], shared["extraEnvVars"])
                values["extraEnvVars"] = shared["extraEnvVars"]
                self.assertEqual(self.nginx_config(values)["envs"][:-2], self.nginx_config(shared)["envs"])
                self.nginx_config(values)["envs"] = self.nginx_config(shared)["envs"]
                for key in ("existingCASecret", "certCAFilename"):
                    del values["apisix"]["ssl"][key]
                if way == "beside":
                    del values["apisix"]["fullCustomConfig"]["config"]["apisix"]["ssl"]["ssl_trusted_certificate"]
                self.assertEqual(values, shared)

    def test_the_admin_api_is_on_loopback_only_and_has_a_key_of_ones_own(self):
        for way in self.WAYS:
            self.assertIs(self.values(way)["apisix"]["admin"]["enabled"], False)
        values = self.values("spawned", self.DASHBOARD)
        admin = values["apisix"]["admin"]
        self.assertEqual(admin["ip"], "127.0.0.1")
        self.assertEqual(admin["type"], "ClusterIP")
        self.assertEqual(admin["allow"], {"ipList": ["127.0.0.1/32"]})
        self.assertEqual(admin["credentials"], {"secretName": "apisix-admin-key"})
        self.assertIs(values["etcd"]["enabled"], False)
        etcd = find("Service", "etcd", "apisix")
        self.assertEqual(
            values["externalEtcd"]["host"],
            [f"http://etcd.apisix.svc.cluster.local:{etcd['spec']['ports'][0]['port']}"],
        )

    def test_the_ingress_controllers_gateway_is_the_dashboards_except_for_its_clients(self):
        here = yaml.safe_load(read("apisix-conf/helm/values-ingress.yaml"))
        there = yaml.safe_load(read(self.DASHBOARD))
        admin, other = here["apisix"]["admin"], there["apisix"]["admin"]
        self.assertEqual(admin.pop("ip"), "0.0.0.0")
        self.assertNotIn("0.0.0.0/0", admin.pop("allow")["ipList"])
        # The page is the dashboard's alone.
        for key in ("ip", "allow", "enable_admin_ui"):
            del other[key]
        self.assertEqual(here, there)
        proxy = find("GatewayProxy", "apisix-config", "apisix")["spec"]["provider"]["controlPlane"]
        self.assertEqual(proxy["service"], {"name": "apisix-admin", "port": 9180})
        reference = proxy["auth"]["adminKey"]["valueFrom"]["secretKeyRef"]
        self.assertEqual(reference, {"name": admin["credentials"]["secretName"], "key": "admin"})

    def test_etcd_and_its_class_are_of_one_user(self):
        spec = find("StatefulSet", "etcd", "apisix")["spec"]
        (claim,) = spec["volumeClaimTemplates"]
        share = find("StorageClass", claim["spec"]["storageClassName"])["parameters"]["share"]
        user = spec["template"]["spec"]["securityContext"]["runAsUser"]
        (options,) = [
            line for line in read("examples/kubernetes/storage/kube-coders.exports").splitlines() if share in line
        ]
        self.assertIn(f"anonuid={user},", options)

    def test_the_patch_has_the_shared_grace_period(self):
        patch = yaml.safe_load(read("examples/kubernetes/gateway/deployment-patch.yaml"))
        shared = yaml.safe_load(read("apisix-conf/helm/grace-period.yaml"))
        self.assertEqual(merged(patch, shared), patch)
        template = self.routes()["services"][0]["plugins"]["ext-plugin-pre-req"]["conf"][0]["value"]
        host = re.search(r"http://(code-\{sub\}[^:]*):8443", template).group(1)
        (option,) = patch["spec"]["template"]["spec"]["dnsConfig"]["options"]
        self.assertEqual(option, {"name": "ndots", "value": str(host.count("."))})

    def test_every_secret_that_is_named_is_made(self):
        made = {("keycloak", "keycloak", key) for key in ("postgres-password", "admin-password", "client-secret")}
        gateway = ("KEYCLOAK_CLIENT_SECRET", "SESSION_SECRET", "SUBJECT_KEY")
        made |= {("apisix", "kube-coders-gateway", key) for key in gateway}
        made |= {("apisix", "apisix-admin-key", "admin")}
        script = read("examples/kubernetes/secrets.sh")
        for namespace, name, key in made:
            self.assertRegex(script, rf"--namespace {namespace} create secret generic {name} ")
            self.assertIn(f'--from-file="$folder/{key}"', script)
        guide = read("examples/kubernetes/tls/README.md")
        tls = [("apisix", "coders-tls"), ("apisix", "key-tls"), ("keycloak", "keycloak-tls")]
        for namespace, name in tls:
            self.assertRegex(guide, rf"(?m)^tls {namespace} {name} (coders|key)\.example\.com$")
            self.assertEqual(find("Certificate", name, namespace)["spec"]["secretName"], name)
        self.assertIn("kubectl -n apisix create secret generic kube-coders-ca ", guide)
        made |= {(namespace, name, key) for namespace, name in tls for key in ("tls.crt", "tls.key")}
        named = set()
        for _, namespace, _, spec in pods():
            for container in spec["containers"]:
                references = [
                    variable["valueFrom"]["secretKeyRef"]
                    for variable in container.get("env", [])
                    if "valueFrom" in variable
                ]
                named |= {(namespace, reference["name"], reference["key"]) for reference in references}
            for volume in spec.get("volumes", []):
                if "secret" in volume:
                    keys = [item["key"] for item in volume["secret"].get("items", [])] or ["tls.crt", "tls.key"]
                    named |= {(namespace, volume["secret"]["secretName"], key) for key in keys}
        for way in self.WAYS:
            for variable in self.values(way)["extraEnvVars"]:
                reference = variable["valueFrom"]["secretKeyRef"]
                named.add(("apisix", reference["name"], reference["key"]))
        self.assertGreater(len(named), 8)
        self.assertLessEqual(named, made)


if __name__ == "__main__":
    unittest.main()
