"""apisix-conf/admin-api/put.sh against a stand-in for the Admin API on loopback."""

import base64
import http.server
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import unittest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "apisix-conf" / "admin-api"
KEY = "stand-in-admin-key-3f1c"
# Looks like PEM, which is all that the script reads of it.
TLS_SECRET = base64.b64encode(b"the key of nobody's certificate " * 6).decode()
ROUTES = ["workspaces", "workspaces-login", "healthz", "favicon"]
PATHS = ["services/workspaces"] + ["routes/" + route for route in ROUTES]


def pem(label, text):
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def arguments_of_all_processes():
    """What any user may read of every process."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue  # It has ended.


class Gateway:
    """Records what comes, and answers one path with another status."""

    def __init__(self, refuse=None, status=400):
        self.requests = []
        self.arguments = []
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                gateway.arguments.extend(arguments_of_all_processes())
                gateway.requests.append((self.command, self.path, dict(self.headers), body))
                refused = refuse is not None and self.path.endswith(refuse)
                answer = json.dumps({"error_msg": "invalid configuration: just so"} if refused else {}).encode()
                self.send_response(status if refused else 201)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_DELETE = do_PATCH = do_PUT

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.02])

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def paths(self):
        return [path for _, path, _, _ in self.requests]

    def bodies(self):
        return {path.removeprefix("/apisix/admin/"): json.loads(body) for _, path, _, body in self.requests}


def put(*arguments, **variables):
    environment = {"PATH": os.environ["PATH"], **variables}
    command = ["bash", str(FOLDER / "put.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def shipped(name):
    return json.loads((FOLDER / name).read_text())


class Put(unittest.TestCase):
    def certificate_files(self, cert=None, key=None):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        files = {
            "CODERS_TLS_CERT_FILE": cert or pem("CERTIFICATE", "QUJD" * 50),
            "CODERS_TLS_KEY_FILE": key or pem("PRIVATE KEY", TLS_SECRET),
        }
        for variable, text in files.items():
            path = pathlib.Path(folder.name, variable)
            path.write_text(text)
            files[variable] = str(path)
        return files

    def assert_refused(self, result, message, code=2):
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertIn(message, result.stderr)
        self.assertNotIn(KEY, result.stdout + result.stderr)

    def test_the_service_goes_before_its_routes_and_everything_is_put(self):
        with Gateway() as gateway:
            result = put(APISIX_ADMIN_URL=gateway.url, APISIX_ADMIN_KEY=KEY)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(gateway.paths(), ["/apisix/admin/" + path for path in PATHS])
        for method, _, headers, _ in gateway.requests:
            self.assertEqual(method, "PUT")
            self.assertEqual(headers["X-API-KEY"], KEY)
            self.assertEqual(headers["Content-Type"], "application/json")
        expected = {"routes/" + route: shipped(f"route-{route}.json") for route in ROUTES}
        expected["services/workspaces"] = shipped("service.json")
        self.assertEqual(gateway.bodies(), expected)
        self.assertIn("no certificate is put", result.stdout)

    def test_direct_mode_puts_the_other_service(self):
        for flags in (["--mode", "direct"], ["--mode=direct"]):
            with Gateway() as gateway:
                result = put(*flags, APISIX_ADMIN_URL=gateway.url + "/", APISIX_ADMIN_KEY=KEY)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(gateway.paths(), ["/apisix/admin/" + path for path in PATHS])
            self.assertEqual(gateway.bodies()["services/workspaces"], shipped("service-direct.json"))

    def test_the_certificate_goes_first(self):
        cert = pem("CERTIFICATE", "QUJD" * 50) + pem("CERTIFICATE", "REVG" * 50)
        key = pem("EC PARAMETERS", "BggqhkjOPQMBBw==") + pem("EC PRIVATE KEY", TLS_SECRET)
        # As openssl writes them: text before the block, and any line ends.
        files = self.certificate_files("subject=CN = coders.example.com\n" + cert, key.replace("\n", "\r\n"))
        with Gateway() as gateway:
            result = put(APISIX_ADMIN_URL=gateway.url, APISIX_ADMIN_KEY=KEY, **files)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(gateway.paths()[0], "/apisix/admin/ssls/coders")
        ssl = gateway.bodies()["ssls/coders"]
        self.assertEqual(ssl["snis"], ["coders.example.com"])
        self.assertEqual(ssl["cert"], cert)
        self.assertEqual(ssl["key"], pem("EC PRIVATE KEY", TLS_SECRET))

    def test_no_secret_is_in_an_argument_or_printed(self):
        with Gateway() as gateway:
            files = self.certificate_files()
            result = put(APISIX_ADMIN_URL=gateway.url, APISIX_ADMIN_KEY=KEY, **files)
        seen = b"\n".join(gateway.arguments)
        self.assertIn(b"curl", seen, "the stand-in saw the client's arguments")
        self.assertEqual(len(gateway.requests), 1 + len(PATHS))
        for secret in (KEY, TLS_SECRET[:64]):
            self.assertNotIn(secret.encode(), seen)
            self.assertNotIn(secret, result.stdout + result.stderr)

    def test_the_first_refusal_ends_it_and_is_shown(self):
        for status in (400, 401, 302, 500):
            with Gateway(refuse="/routes/workspaces", status=status) as gateway:
                result = put(APISIX_ADMIN_URL=gateway.url, APISIX_ADMIN_KEY=KEY)
            self.assertEqual(gateway.paths(), ["/apisix/admin/" + path for path in PATHS[:2]])
            self.assert_refused(result, "invalid configuration: just so", code=1)
            self.assertIn(f"answered with {status}; nothing after it was put", result.stderr)

    def test_a_gateway_that_is_not_there_is_an_error(self):
        with Gateway() as gateway:
            url = gateway.url
        result = put(APISIX_ADMIN_URL=url, APISIX_ADMIN_KEY=KEY)
        self.assert_refused(result, "services/workspaces failed; nothing after it was put", code=1)

    def test_a_proxy_of_the_environment_gets_nothing(self):
        with Gateway() as gateway, Gateway() as proxy:
            result = put(APISIX_ADMIN_URL=gateway.url, APISIX_ADMIN_KEY=KEY, http_proxy=proxy.url)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(proxy.requests, [])
        self.assertEqual(len(gateway.requests), len(PATHS))

    def test_no_curlrc_is_read(self):
        """One that traces would write the key into a file, one with a proxy or another URL send it elsewhere."""
        with tempfile.TemporaryDirectory() as folder, Gateway() as gateway, Gateway() as other:
            trace = pathlib.Path(folder, "trace")
            text = f'trace-ascii = "{trace}"\nurl = "{other.url}/apisix/admin/stolen"\nheader = "X-More: 1"\n'
            for name in (".curlrc", "curlrc"):
                pathlib.Path(folder, name).write_text(text)
            for variable in ("HOME", "CURL_HOME", "XDG_CONFIG_HOME"):
                variables = {"APISIX_ADMIN_URL": gateway.url, "APISIX_ADMIN_KEY": KEY, variable: folder}
                result = put(**variables, **self.certificate_files())
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertFalse(trace.exists(), variable)
            self.assertEqual(other.requests, [])
            self.assertEqual(len(gateway.requests), 3 * (1 + len(PATHS)))
            self.assertFalse([1 for _, _, headers, _ in gateway.requests if "X-More" in headers])

    def test_a_dry_run_sends_no_request_and_shows_no_key(self):
        with Gateway() as gateway:
            result = put("--dry-run", APISIX_ADMIN_URL=gateway.url, **self.certificate_files())
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(gateway.requests, [])
        for path in ["ssls/coders"] + PATHS:
            self.assertIn(f"PUT {gateway.url}/apisix/admin/{path}\n", result.stdout)
        self.assertIn("the content of CODERS_TLS_KEY_FILE", result.stdout)
        self.assertNotIn(TLS_SECRET[:64], result.stdout)

    def test_an_impossible_order_is_refused_before_anything_is_put(self):
        encrypted = {"key": pem("ENCRYPTED PRIVATE KEY", TLS_SECRET)}
        cases = [
            ({"APISIX_ADMIN_KEY": ""}, "APISIX_ADMIN_KEY is empty"),
            ({"APISIX_ADMIN_KEY": KEY + "\nX-Other: 1"}, "a space or a control character"),
            ({"CODERS_TLS_CERT_FILE": "/nowhere"}, "only one is set"),
            ({"CODERS_TLS_CERT_FILE": "/nowhere", "CODERS_TLS_KEY_FILE": "/nowhere"}, "'/nowhere' can't be read"),
            (self.certificate_files(cert="nothing"), "no PEM block 'CERTIFICATE'"),
            (self.certificate_files(cert=pem("CERTIFICATE", 'QUJD"')), "more than base64"),
            (self.certificate_files(cert="-----BEGIN CERTIFICATE-----\nQUJD\n"), "ends within a PEM block"),
            (self.certificate_files(**encrypted), "is encrypted"),
            ({"CODERS_TLS_SNI": 'a"b', **self.certificate_files()}, "no host name"),
        ]
        for variables, message in cases:
            with self.subTest(message), Gateway() as gateway:
                result = put(**{"APISIX_ADMIN_URL": gateway.url, "APISIX_ADMIN_KEY": KEY, **variables})
                self.assert_refused(result, message)
                self.assertEqual(gateway.requests, [])

    def test_a_url_in_clear_text_or_nonsense_is_refused(self):
        cases = [
            ("http://gateway.example.com:9180", "http to another machine"),
            ("http://127.0.0.1.example.com:9180", "http to another machine"),
            ("http://127.0.0.1:9180@example.com", "not scheme, host and port"),
            ("ftp://127.0.0.1", "no http or https URL"),
            ("https://example.com/?a=b", "not scheme, host and port"),
        ]
        for url, message in cases:
            with self.subTest(url):
                self.assert_refused(put(APISIX_ADMIN_URL=url, APISIX_ADMIN_KEY=KEY), message)

    def test_unknown_arguments_are_refused(self):
        self.assert_refused(put("--mode", "both"), "mode 'both' is neither forward nor direct")
        self.assert_refused(put("--mode"), "needs a value: forward or direct")
        self.assert_refused(put("--force"), "unknown argument '--force'")
        self.assertEqual(put("--help").returncode, 0)


if __name__ == "__main__":
    unittest.main()
