"""The route to Keycloak: what passes, and that the gateway and Keycloak can't read one line in two ways.

A route's paths are compared with the decoded, normalised path, and Keycloak gets the line as the client
sent it. Whatever the two would understand differently must match no route.
"""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import unittest
import urllib.parse

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
KUBE_CODERS = os.environ.get("KUBE_CODERS", str(ROOT / "target" / "debug" / "kube-coders"))
FILES = [
    "compose/apisix/apisix.yaml",
    "kubernetes/gateway/apisix.yaml",
    "kubernetes/gateway/ingress-keycloak.yaml",
    "kubernetes/gateway/dashboard/route-keycloak.json",
]

# Of a login, and of what its pages load.
GOOD = [
    "/realms/dev/.well-known/openid-configuration",
    "/realms/dev/protocol/openid-connect/auth?client_id=apisix&redirect_uri=https%3A%2F%2Fcoders.example.com%2F..%2F&state=a;b//",
    "/realms/dev/protocol/openid-connect/certs",
    "/realms/dev/login-actions/authenticate?session_code=a.b&execution=c",
    "/realms/dev/broker/some%20where/endpoint",
    "/resources/abcde/login/keycloak.v2/css/styles.css",
    "/resources/abcde/common/keycloak/..a/.b/c../...",
    "/realms/dev/",
]
# Paths that the gateway and Keycloak read differently, or that were not looked at.
BAD = [
    "/realms/master/x/..%2f..%2f..%2frealms/dev/x",
    "/realms/master/protocol/openid-connect/token/..%2F..%2F..%2F..%2F..%2Frealms/dev/x",
    "/admin/..%2frealms/dev/x",
    "/admin/%2e%2e/realms/dev/x",
    "/admin/%2E%2e%2frealms/dev/x",
    "/admin/.%2e/realms/dev/x",
    "/admin/../realms/dev/x",
    "/admin/./../realms/dev/x",
    "/realms/master/..;/..%2frealms/dev/x",
    "/realms/dev/..%2fmaster/x",
    "/realms/dev/%2e%2e/dev/x",
    "/realms/dev/..%252f..%252fmaster",
    "/realms/dev/..%5c..%5cmaster",
    "/realms/dev/..\\..\\master",
    "/realms/dev/..;/..;/master",
    "/realms/dev/;x=1/y",
    "/realms/dev/./x",
    "/realms/dev/x/..",
    "/realms/dev/x/.?a",
    "/realms/dev//x",
    "//realms/dev/x",
    "/realms//dev/x",
    "/realms/dev/x#/../../master",
    "/realms/master/../dev/x",
    "/resources/..%2frealms/dev/x",
    "/realms/d%65v/x",
    "/%72ealms/dev/x",
]
# What has never matched.
OTHER = ["/", "/admin/", "/realms/master/", "/realms/dev", "/realms/devil/x", "/metrics", "/realms/dev?a=/realms/dev/"]


def documents(path):
    return [one for one in yaml.safe_load_all((EXAMPLES / path).read_text(encoding="utf-8")) if one]


def condition(path):
    """The route's paths, and what the raw line has to look like, in whatever form the file says it."""
    found = documents(path)
    if path.endswith("ingress-keycloak.yaml"):
        (rule,) = [rule for one in found if one["kind"] == "ApisixRoute" for rule in one["spec"]["http"]]
        (expression,) = rule["match"]["exprs"]
        # As the controller translates it.
        assert expression["subject"] == {"scope": "Variable", "name": "real_request_uri"}, expression
        return rule["match"]["paths"], ["real_request_uri", {"RegexMatch": "~~"}[expression["op"]], expression["value"]]
    route = found[0]
    if "routes" in route:
        (route,) = [one for one in route["routes"] if one["id"] == "keycloak"]
    (found,) = route["vars"]
    return route["uris"], found


def seen_by_the_gateway(line):
    """The path that nginx makes of a request's line: one decoding, one slash for many, no dot segments."""
    path = urllib.parse.unquote(re.split(r"[?#]", line)[0], encoding="latin-1")
    segments = []
    for segment in re.sub("/+", "/", path).split("/")[1:]:
        if segment == "..":
            segments = segments[:-1]
        elif segment != ".":
            segments.append(segment)
    ends = "/" if re.search(r"/\.\.?$", path) and segments else ""
    return "/" + "/".join(segments) + ends


def nginx_program():
    """The one that tests/lua/nginx/unpack.sh has unpacked, with its libraries, or an installed one."""
    unpacked = os.environ.get("KUBE_CODERS_NGINX_LUA")
    if unpacked:
        return f"{unpacked}/nginx", {"LD_LIBRARY_PATH": f"{unpacked}/lib"}
    return shutil.which("nginx"), {}


class Nginx:
    """A real one with the route's paths and its condition, as the gateway has them."""

    def __init__(self, paths, pattern, folder):
        # It inherits a socket that listens already, so a connection waits until nginx takes it.
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        quoted = pattern.replace("\\", "\\\\")
        self.folder = folder
        temporary = "".join(
            f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        locations = "".join(
            f'location {path.removesuffix("*")} {{ if ($request_uri !~ "{quoted}") {{ return 404 "raw"; }} return 200; }}'
            for path in paths
        )
        pathlib.Path(folder, "conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/log;"
            f"events {{}} http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{self.port};"
            f'{locations} location / {{ return 404 "path"; }} }} }}'
        )

    def __enter__(self):
        program, libraries = nginx_program()
        command = [program, "-p", self.folder, "-e", f"{self.folder}/log", "-c", f"{self.folder}/conf"]
        with self.listener as listener:
            inherited = listener.fileno()
            self.process = subprocess.Popen(
                command,
                env=os.environ | libraries | {"NGINX": f"{inherited};"},
                pass_fds=[inherited],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()

    def ask(self, line):
        """The status, and which of the two refused."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(f"GET {line} HTTP/1.1\r\nHost: key.example.com\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := connection.recv(4096):
                answer += part
        head, _, body = answer.decode().partition("\r\n\r\n")
        return int(head.split()[1]), body


class KeycloakRoute(unittest.TestCase):
    def test_all_four_say_the_same(self):
        conditions = [condition(path) for path in FILES]
        self.assertEqual(len(conditions), 4)
        for path, found in zip(FILES, conditions):
            self.assertEqual(found, conditions[0], path)
        paths, (variable, operator, _) = conditions[0]
        self.assertEqual(paths, ["/realms/dev/*", "/resources/*"])
        # A match, and no negation: a line that is not there, or a condition that is not understood, is refused.
        self.assertEqual((variable, operator), ("real_request_uri", "~~"))

    def matches(self, line):
        paths, (_, _, pattern) = condition(FILES[0])
        path = seen_by_the_gateway(line)
        of_the_route = any(path.startswith(one.removesuffix("*")) for one in paths)
        return of_the_route, bool(re.search(pattern, line))

    def test_a_login_passes(self):
        for line in GOOD:
            self.assertEqual(self.matches(line), (True, True), line)

    def test_an_ambiguous_path_matches_nothing(self):
        through_the_paths = 0
        for line in BAD:
            of_the_route, of_the_line = self.matches(line)
            self.assertFalse(of_the_line, line)
            through_the_paths += of_the_route
        # Without the condition, most would have passed.
        self.assertGreater(through_the_paths, 20)
        print(f"route to Keycloak: {len(BAD)} lines refused, {through_the_paths} of them by the condition alone")

    def test_other_paths_match_as_little_as_before(self):
        for line in OTHER:
            self.assertFalse(all(self.matches(line)), line)

    def test_a_real_nginx_reads_them_so(self):
        """APISIX compares what nginx made of the line, and hands on $request_uri, as here."""
        if not nginx_program()[0]:
            self.skipTest("nginx is neither installed nor unpacked")
        paths, (_, _, pattern) = condition(FILES[0])
        with tempfile.TemporaryDirectory() as folder, Nginx(paths, pattern, folder) as nginx:
            for line in GOOD:
                self.assertEqual(nginx.ask(line)[0], 200, line)
            for line in BAD:
                of_the_route, _ = self.matches(line)
                self.assertEqual(nginx.ask(line), (404, "raw" if of_the_route else "path"), line)
            for line in OTHER:
                self.assertEqual(nginx.ask(line)[0], 404, line)

    def test_the_guides_show_an_attack(self):
        for guide in ("compose/README.md", "kubernetes/gateway/README.md"):
            text = (EXAMPLES / guide).read_text(encoding="utf-8")
            self.assertIn("/realms/master/x/..%2f..%2f..%2frealms/dev/x", text, guide)
            self.assertIn("--path-as-is", text, guide)

    def test_kube_coders_check_finds_nothing(self):
        for path in FILES:
            command = [KUBE_CODERS, "check", "--gateway-version", "3.18", str(EXAMPLES / path)]
            checked = subprocess.run(command, text=True, capture_output=True, check=False)
            self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
            self.assertIn("0 errors, 0 warnings in 1 file", checked.stdout + checked.stderr)


if __name__ == "__main__":
    unittest.main()
