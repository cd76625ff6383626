"""The manifests of examples/kubernetes and apisix-conf/ingress, for the tests that look at them."""

import copy
import pathlib
import unittest

import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "kubernetes"
INGRESS = ROOT / "apisix-conf" / "ingress"

# The oldest Kubernetes that the guide names, and the newest that there are schemas of.
VERSIONS = ("1.32", "1.37")

# YAML in the folder that is applied in another way than as manifests.
OTHERWISE = {
    "gateway/apisix.yaml": "routes",
    "gateway/values-beside.yaml": "values",
    "gateway/values-spawned.yaml": "values",
    "gateway/dashboard/values.yaml": "values",
    "gateway/deployment-patch.yaml": "patch",
    "storage/csi-driver-nfs-values.yaml": "values",
    "storage/snapshot-controller/kustomization.yaml": "kustomization",
    "keycloak/kustomization.yaml": "kustomization",
}
# Helm renders it, and another test checks what comes out.
CHART = FOLDER / "charts"

CLUSTER_WIDE = {"Namespace", "StorageClass", "VolumeSnapshotClass", "ClusterIssuer", "IngressClass"}

# The gateway's pods, as the chart of release `apisix` labels them.
GATEWAY = {"app.kubernetes.io/name": "apisix", "app.kubernetes.io/instance": "apisix"}
NAMESPACES = {"apisix", "keycloak", "code-server"}


def closed(required=(), **properties):
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
FLAG = {"type": "boolean"}
NUMBER = {"type": "integer"}
ANY = {"type": "object"}
DURATION = {"type": "string", "pattern": r"^[0-9]+(s|m|h)$"}
ISSUER = closed(
    ["name", "kind", "group"], name=TEXT, kind={"enum": ["Issuer", "ClusterIssuer"]}, group={"const": "cert-manager.io"}
)
PLUGINS = {
    "type": "array",
    "items": closed(["name", "enable", "config"], name=TEXT, enable={"const": True}, config=ANY),
}
TIMEOUT = closed(["connect", "send", "read"], connect=DURATION, send=DURATION, read=DURATION)
EXPRESSION = closed(
    ["subject", "op"],
    subject=closed(["scope"], scope={"enum": ["Header", "Query", "Cookie", "Path", "Variable"]}, name=TEXT),
    op=TEXT,
    value=TEXT,
    set=TEXTS,
)
HTTP_ROUTE = closed(
    ["name", "match"],
    name=TEXT,
    priority=NUMBER,
    websocket=FLAG,
    plugin_config_name=TEXT,
    plugins=PLUGINS,
    match=closed(
        ["hosts", "paths"], hosts=TEXTS, paths=TEXTS, methods=TEXTS, exprs={"type": "array", "items": EXPRESSION}
    ),
    upstreams={"type": "array", "minItems": 1, "items": closed(["name"], name=TEXT, weight=NUMBER)},
    backends={
        "type": "array",
        "minItems": 1,
        "items": closed(["serviceName", "servicePort"], serviceName=TEXT, servicePort=NUMBER),
    },
)
# Of each kind that Kubernetes itself does not know, the part of its schema that is used here.
CUSTOM = {
    ("snapshot.storage.k8s.io/v1", "VolumeSnapshotClass"): closed(
        ["driver", "deletionPolicy"], driver={"const": "nfs.csi.k8s.io"}, deletionPolicy={"enum": ["Delete", "Retain"]}
    ),
    ("snapshot.storage.k8s.io/v1", "VolumeSnapshot"): closed(
        ["spec"],
        spec=closed(
            ["source"],
            volumeSnapshotClassName=TEXT,
            source=closed(["persistentVolumeClaimName"], persistentVolumeClaimName=TEXT),
        ),
    ),
    ("cert-manager.io/v1", "Issuer"): closed(["spec"], spec=closed(["selfSigned"], selfSigned=closed())),
    ("cert-manager.io/v1", "ClusterIssuer"): closed(
        ["spec"], spec=closed(["ca"], ca=closed(["secretName"], secretName=TEXT))
    ),
    ("cert-manager.io/v1", "Certificate"): closed(
        ["spec"],
        spec=closed(
            ["secretName", "issuerRef"],
            secretName=TEXT,
            issuerRef=ISSUER,
            isCA=FLAG,
            commonName=TEXT,
            dnsNames=TEXTS,
            duration=DURATION,
            renewBefore=DURATION,
            usages={"type": "array", "items": {"enum": ["digital signature", "server auth"]}},
            privateKey=closed(
                ["algorithm", "size"],
                algorithm={"enum": ["ECDSA"]},
                size={"enum": [256, 384]},
                rotationPolicy={"enum": ["Never", "Always"]},
            ),
        ),
    ),
    ("apisix.apache.org/v2", "ApisixRoute"): closed(
        ["spec"],
        spec=closed(
            ["ingressClassName", "http"],
            ingressClassName=TEXT,
            http={"type": "array", "minItems": 1, "items": HTTP_ROUTE},
        ),
    ),
    ("apisix.apache.org/v2", "ApisixUpstream"): closed(
        ["spec"],
        spec=closed(
            ["ingressClassName"],
            ingressClassName=TEXT,
            scheme={"enum": ["http", "https"]},
            passHost={"enum": ["pass", "node", "rewrite"]},
            timeout=TIMEOUT,
            loadbalancer=closed(["type"], type=TEXT),
            externalNodes={
                "type": "array",
                "items": closed(
                    ["type", "name"], type={"enum": ["Domain", "Service"]}, name=TEXT, port=NUMBER, weight=NUMBER
                ),
            },
        ),
    ),
    ("apisix.apache.org/v2", "ApisixPluginConfig"): closed(
        ["spec"], spec=closed(["plugins"], ingressClassName=TEXT, plugins=PLUGINS)
    ),
    ("apisix.apache.org/v2", "ApisixTls"): closed(
        ["spec"],
        spec=closed(
            ["hosts", "secret"],
            ingressClassName=TEXT,
            hosts=TEXTS,
            secret=closed(["name", "namespace"], name=TEXT, namespace=TEXT),
        ),
    ),
    ("apisix.apache.org/v1alpha1", "GatewayProxy"): closed(["spec"], spec=closed(["provider"], provider=ANY)),
}


def check_object(item, version):
    """Raises if this is no valid object of a kind that is known."""
    kind = (item["apiVersion"], item["kind"])
    if kind in CUSTOM:
        schema = copy.deepcopy(CUSTOM[kind])
        schema["properties"].update(apiVersion=TEXT, kind=TEXT, metadata=ANY)
        jsonschema.validate(item, schema)
    else:
        kubernetes_validate.validate(item, version, strict=True)


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def below(folder):
    return sorted(path for path in folder.rglob("*.yaml") if CHART not in path.parents)


def manifest_files():
    return [path for path in below(FOLDER) if str(path.relative_to(FOLDER)) not in OTHERWISE] + below(INGRESS)


def manifests():
    for path in manifest_files():
        for item in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if item is not None:
                yield str(path.relative_to(ROOT)), item


def find(kind, name, namespace=None):
    (found,) = [
        item
        for path, item in manifests()
        if item["kind"] == kind and item["metadata"]["name"] == name and item["metadata"].get("namespace") == namespace
    ]
    return found


def pods():
    """Each pod that the manifests make, with its labels: (place, namespace, labels, spec)."""
    for path, item in manifests():
        place = f"{path}: {item['kind']} {item['metadata']['name']}"
        namespace = item["metadata"].get("namespace")
        if item["kind"] == "Pod":
            yield place, namespace, item["metadata"]["labels"], item["spec"]
        elif item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template = item["spec"]["template"]
            yield place, namespace, template["metadata"]["labels"], template["spec"]


def merged(*values):
    """As Helm puts values together: maps are merged, all else is replaced."""
    if not all(isinstance(value, dict) for value in values):
        return values[-1]
    keys = list(dict.fromkeys(key for value in values for key in value))
    return {key: merged(*[value[key] for value in values if key in value]) for key in keys}


class Case(unittest.TestCase):
    maxDiff = None

    def not_empty(self, found):
        found = list(found)
        self.assertTrue(found, "nothing was looked at")
        return found
