"""The forms of the route under apisix-conf are one route: read each, and compare."""

import json
import pathlib
import re
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONF = ROOT / "apisix-conf"
NODES = {"forward": {"127.0.0.1:9181": 1}, "direct": {"127.0.0.1:1": 1}}
# APISIX's own, of the plugins whose order matters and which no file changes.
PRIORITY = {"openid-connect": 2599, "kube-coders-upstream": 2598}


def documents(path):
    return [document for document in yaml.safe_load_all((CONF / path).read_text()) if document]


def normal_conf(plugins):
    """Plugins with the confs of the runner's plugins as values instead of texts."""
    plugins = json.loads(json.dumps(plugins))
    for conf in plugins.get("ext-plugin-pre-req", {}).get("conf", []):
        conf["value"] = json.loads(conf["value"])
    return plugins


def normal_route(route, service):
    """A route together with its service, as the gateway merges them."""
    conditions = [["request_method", "==", method] for method in route.get("methods", [])]
    conditions += route.get("vars", [])
    return {
        "hosts": route.get("hosts") or [route["host"]],
        "uris": route.get("uris") or [route["uri"]],
        "priority": route.get("priority", 0),
        "vars": sorted(conditions),
        "websocket": route.get("enable_websocket", service.get("enable_websocket", False)),
        "timeout": route.get("timeout"),
        "plugins": normal_conf({**service.get("plugins", {}), **route.get("plugins", {})}),
        "upstream": route.get("upstream", service.get("upstream")),
    }


def standalone(folder):
    [file] = documents(f"{folder}/apisix.yaml")
    services = {service["id"]: service for service in file["services"]}
    routes = {}
    for route in file["routes"]:
        service = services[route["service_id"]] if "service_id" in route else {}
        routes[route["id"]] = normal_route(route, service)
    return routes


def admin_api(service):
    services = {"workspaces": json.loads((CONF / "admin-api" / service).read_text())}
    routes = {}
    for path in sorted((CONF / "admin-api").glob("route-*.json")):
        route = json.loads(path.read_text())
        merged = services[route["service_id"]] if "service_id" in route else {}
        routes[path.stem.removeprefix("route-")] = normal_route(route, merged)
    return routes


def seconds(duration):
    return int(re.fullmatch(r"(\d+)s", duration)[1])


def ingress(mode):
    """As the ingress controller translates its resources, in the parts that are used."""
    resources = {(r["kind"], r["metadata"]["name"]): r["spec"] for r in documents(f"ingress/{mode}.yaml")}
    [route_file] = documents("ingress/route.yaml")
    routes = {}
    for rule in route_file["spec"]["http"]:
        match = rule["match"]
        operators = {"RegexMatch": "~~", "Equal": "=="}
        conditions = []
        for expression in match.get("exprs", []):
            assert expression["subject"]["scope"] == "Header"
            name = "http_" + expression["subject"]["name"].lower().replace("-", "_")
            conditions.append([name, operators[expression["op"]], expression["value"]])
        plugins = {}
        if "plugin_config_name" in rule:
            shared = resources["ApisixPluginConfig", rule["plugin_config_name"]]["plugins"]
            plugins = {plugin["name"]: plugin["config"] for plugin in shared if plugin["enable"]}
        plugins.update({plugin["name"]: plugin["config"] for plugin in rule["plugins"] if plugin["enable"]})
        [reference] = rule["upstreams"]
        upstream = resources["ApisixUpstream", reference["name"]]
        nodes = {f"{node['name']}:{node['port']}": node["weight"] for node in upstream["externalNodes"]}
        routes[rule["name"]] = {
            "hosts": match["hosts"],
            "uris": match["paths"],
            "priority": rule.get("priority", 0),
            "vars": sorted([["request_method", "==", method] for method in match.get("methods", [])] + conditions),
            "websocket": rule.get("websocket", False),
            "timeout": rule.get("timeout"),
            "plugins": normal_conf(plugins),
            "upstream": {
                "type": upstream["loadbalancer"]["type"],
                "scheme": upstream["scheme"],
                "pass_host": upstream["passHost"],
                "nodes": nodes,
                "timeout": {name: seconds(text) for name, text in upstream["timeout"].items()},
            },
        }
    return routes


FORMS = {
    ("standalone", "forward"): lambda: standalone("standalone"),
    ("standalone", "direct"): lambda: standalone("standalone-direct"),
    ("admin-api", "forward"): lambda: admin_api("service.json"),
    ("admin-api", "direct"): lambda: admin_api("service-direct.json"),
    ("ingress", "forward"): lambda: ingress("forward"),
    ("ingress", "direct"): lambda: ingress("direct"),
}
GUARDED = ["workspaces", "workspaces-login"]


class SameRoute(unittest.TestCase):
    maxDiff = None

    def each(self):
        """Every form with its mode, each as a test of its own."""
        self.assertEqual(len(FORMS), 6)
        for (form, mode), read in FORMS.items():
            with self.subTest(form=form, mode=mode):
                yield form, mode, read()

    def test_every_form_has_the_same_routes(self):
        for _, _, routes in self.each():
            self.assertEqual(set(routes), {"workspaces", "workspaces-login", "healthz", "favicon"})

    def test_a_route_matches_the_same_requests_and_runs_the_same_plugins(self):
        for form, mode, routes in self.each():
            expected = FORMS["standalone", mode]()
            for name, route in routes.items():
                for part in ("hosts", "uris", "priority", "vars", "timeout", "plugins"):
                    self.assertEqual(route[part], expected[name][part], f"{name} {part}")
            for name in GUARDED:
                self.assertIs(routes[name]["websocket"], True)

    def test_the_upstream_is_the_same_but_for_what_a_form_can_not_say(self):
        for form, mode, routes in self.each():
            for name in GUARDED:
                upstream = dict(routes[name]["upstream"])
                pool = upstream.pop("keepalive_pool", None)
                # The ingress controller has no field for it: these are the gateway's defaults.
                wanted = mode == "forward" and form != "ingress"
                self.assertEqual(pool, {"size": 320, "idle_timeout": 60, "requests": 1000} if wanted else None)
                self.assertEqual(
                    upstream,
                    {
                        "type": "roundrobin",
                        "scheme": "http",
                        "pass_host": "pass",
                        "nodes": NODES[mode],
                        "timeout": {"connect": 6, "send": 300, "read": 300},
                    },
                )

    def test_both_logins_are_one_but_for_what_happens_without_a_session(self):
        for _, _, routes in self.each():
            logins = {name: dict(routes[name]["plugins"]["openid-connect"]) for name in GUARDED}
            self.assertEqual(logins["workspaces"].pop("unauth_action"), "deny")
            self.assertEqual(logins["workspaces-login"].pop("unauth_action"), "auth")
            self.assertEqual(logins["workspaces"], logins["workspaces-login"])
            self.assertGreater(routes["workspaces-login"]["priority"], routes["workspaces"]["priority"])

    def test_navigations_get_the_login_and_everything_else_a_401(self):
        """By the routes' conditions, as APISIX compares: an exact path first, then the highest priority."""
        page = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
        compare = {"==": lambda found, wanted: found == wanted, "~~": lambda found, wanted: re.search(wanted, found)}
        requests = [
            ("GET", "/", page, "auth"),
            ("GET", "/?folder=/home/coder", page, "auth"),
            ("GET", "/.apisix/redirect?code=a&state=b", page, "auth"),
            ("GET", "/.apisix/logout", page, "auth"),
            ("POST", "/login", page, "deny"),
            ("GET", "/_static/out/main.js", "*/*", "deny"),
            ("GET", "/stable/icon.png", "image/avif,image/webp,image/*,*/*;q=0.8", "deny"),
            ("GET", "/events", "text/event-stream", "deny"),
            # A WebSocket has no Accept.
            ("GET", "/stable-a?reconnectionToken=b", "", "deny"),
            ("DELETE", "/api", "application/json", "deny"),
            ("GET", "/healthz", page, None),
            ("GET", "/favicon.ico", "image/*", None),
        ]
        for _, _, routes in self.each():
            for method, target, accept, expected in requests:
                path, seen = target.split("?")[0], {"request_method": method, "http_accept": accept}
                exact = [route for route in routes.values() if path in route["uris"]]
                found = [
                    route
                    for route in exact or [route for route in routes.values() if route["uris"] == ["/*"]]
                    if all(compare[operator](seen[name], value) for name, operator, value in route["vars"])
                ]
                first, *rest = sorted(found, key=lambda route: -route["priority"])
                self.assertTrue(all(route["priority"] < first["priority"] for route in rest), target)
                login = first["plugins"].get("openid-connect", {})
                self.assertEqual(login.get("unauth_action"), expected, f"{method} {target}")

    def test_the_modes_differ_in_the_mode_only(self):
        for form in ("standalone", "admin-api", "ingress"):
            confs = {}
            for mode in NODES:
                plugins = FORMS[form, mode]()["workspaces"]["plugins"]
                [conf] = plugins["ext-plugin-pre-req"]["conf"]
                self.assertEqual(conf["name"], "user-upstream")
                confs[mode] = (plugins["openid-connect"], dict(conf["value"]))
            self.assertEqual(confs["direct"][1].pop("upstream_mode"), "direct")
            self.assertEqual(confs["direct"], confs["forward"])

    def test_the_plugins_run_in_the_only_order_that_is_safe(self):
        for _, mode, routes in self.each():
            for name in GUARDED:
                plugins = routes[name]["plugins"]
                priority = {
                    plugin: conf.get("_meta", {}).get("priority", PRIORITY.get(plugin))
                    for plugin, conf in plugins.items()
                }
                order = ["redirect", "openid-connect", "ext-plugin-pre-req"]
                if mode == "direct":
                    order.insert(2, "kube-coders-upstream")
                self.assertEqual([p for p in plugins if p not in order + ["proxy-control", "response-rewrite"]], [])
                self.assertEqual(sorted(order, key=lambda plugin: -priority[plugin]), order)
                self.assertEqual(len({priority[plugin] for plugin in order}), len(order))
                self.assertIs(plugins["ext-plugin-pre-req"]["allow_degradation"], False)
                skipped = plugins["ext-plugin-pre-req"]["_meta"].get("filter")
                self.assertEqual(skipped, [["kc_hit", "!", "==", "1"]] if mode == "direct" else None)

    def test_conf_and_login_fit_each_other(self):
        for _, _, routes in self.each():
            for name in GUARDED:
                plugins = routes[name]["plugins"]
                login, conf = plugins["openid-connect"], plugins["ext-plugin-pre-req"]["conf"][0]["value"]
                self.assertEqual(conf["remove_cookies"], [login["session"]["cookie_name"]])
                self.assertEqual(conf["login"], login["logout_path"])
                self.assertEqual(conf["identity"]["audience"], [login["client_id"]])
                issuer = conf["identity"]["issuer"]
                self.assertEqual(login["discovery"], issuer + "/.well-known/openid-configuration")
                for secret in (login["client_secret"], login["session"]["secret"]):
                    self.assertRegex(secret, r"^\$env://[A-Z_]+$")

    def test_the_gateways_own_responses_need_no_login(self):
        for _, _, routes in self.each():
            for name, status in (("healthz", 200), ("favicon", 204)):
                self.assertEqual(list(routes[name]["plugins"]), ["fault-injection"])
                self.assertEqual(routes[name]["plugins"]["fault-injection"]["abort"]["http_status"], status)
                self.assertNotIn("*", routes[name]["uris"][0])


def values(*names):
    """Values files as Helm lays them over each other."""

    def lay(over, under):
        for key, value in over.items():
            if isinstance(value, dict) and isinstance(under.get(key), dict):
                lay(value, under[key])
            else:
                under[key] = value
        return under

    result = {}
    for name in names:
        lay(documents(f"helm/values-{name}.yaml")[0], result)
    return result


class Gateway(unittest.TestCase):
    """The gateway's own configuration, in all places that have one."""

    def configs(self):
        [forward] = documents("standalone/config.yaml")
        [direct] = documents("standalone-direct/config.yaml")
        beside, both = values("beside"), values("beside", "direct")
        found = {
            ("standalone", "forward"): forward,
            ("standalone", "direct"): direct,
            ("helm", "forward"): beside["apisix"]["fullCustomConfig"]["config"],
            ("helm", "direct"): both["apisix"]["fullCustomConfig"]["config"],
        }
        for (place, mode), config in found.items():
            with self.subTest(place=place, mode=mode):
                yield place, mode, config

    def used(self, mode):
        folder = {"forward": "standalone", "direct": "standalone-direct"}[mode]
        text = (CONF / folder / "apisix.yaml").read_text()
        names = set(re.findall(r"\$env://([A-Z_]+)", text))
        self.assertEqual(len(names), 4)
        self.assertTrue(text.endswith("\n#END\n"), "the gateway reads no file without it")
        plugins = {plugin for route in standalone(folder).values() for plugin in route["plugins"]}
        return names, plugins

    def test_every_secret_reaches_the_workers(self):
        for _, mode, config in self.configs():
            names, _ = self.used(mode)
            self.assertEqual(set(config["nginx_config"]["envs"]), names)
        for name in ("spawned", "beside"):
            variables = values(name)["extraEnvVars"]
            self.assertEqual({variable["name"] for variable in variables}, self.used("forward")[0])
            for variable in variables:
                # Not optional: without its Secret, no pod starts.
                self.assertEqual(list(variable["valueFrom"]), ["secretKeyRef"])
                self.assertEqual(set(variable["valueFrom"]["secretKeyRef"]), {"name", "key"})
        self.assertEqual(set(values("spawned")["apisix"]["nginx"]["envs"]), self.used("forward")[0])

    def test_every_plugin_of_a_route_is_on_the_list_where_there_is_one(self):
        for _, mode, config in self.configs():
            if mode == "forward":
                self.assertNotIn("plugins", config)
            else:
                self.assertEqual(set(config["plugins"]), self.used("direct")[1])
                self.assertIn("extra_lua_path", config["apisix"])
        spawned = values("spawned", "direct")["apisix"]
        [custom] = spawned["customPlugins"]["plugins"]
        self.assertEqual({*spawned["plugins"], custom["name"]}, self.used("direct")[1])
        [mount] = custom["configMap"]["mounts"]
        where = spawned["customPlugins"]["luaPath"].replace("?", "apisix/plugins/" + custom["name"])
        self.assertEqual(mount["path"], where)
        self.assertTrue((CONF / "plugins" / mount["key"]).is_file())

    def test_disguised_headers_are_dropped_and_no_address_is_trusted_by_default(self):
        for _, _, config in self.configs():
            self.assertEqual(config["nginx_config"]["http"]["underscores_in_headers"], "off")
            self.assertNotIn("trusted_addresses", config["apisix"])
            self.assertNotIn("real_ip_from", config["nginx_config"]["http"])
        snippet = values("spawned")["apisix"]["nginx"]["configurationSnippet"]["httpSrv"]
        self.assertEqual(snippet.strip(), "underscores_in_headers off;")

    def test_a_workspace_can_not_command_the_gateways_nginx(self):
        """In forward mode the forwarder removes these headers; in direct mode nginx sees them before any plugin."""
        ignored = (
            "proxy_ignore_headers X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Charset;"
        )
        seen = 0
        for _, mode, config in self.configs():
            snippet = config["nginx_config"].get("http_server_configuration_snippet", "")
            self.assertEqual(ignored in snippet, mode == "direct", snippet)
            seen += mode == "direct"
        self.assertGreater(seen, 0)
        spawned = values("spawned", "direct")["apisix"]["nginx"]["configurationSnippet"]["httpSrv"]
        self.assertEqual(spawned.split("\n"), ["underscores_in_headers off;", ignored, ""])

    def test_plain_http_is_for_this_machine_or_for_the_redirect(self):
        for place, _, config in self.configs():
            [listen] = config["apisix"]["node_listen"]
            self.assertEqual(listen.get("ip"), "127.0.0.1" if place == "standalone" else None)
            self.assertEqual(config["plugin_attr"]["redirect"]["https_port"], 443)

    def test_the_runner_is_found(self):
        for _, _, config in self.configs():
            self.assertEqual(config["ext-plugin"], {"path_for_test": "/run/kube-coders/runner.sock"})
        beside = values("beside")
        [container] = beside["extraContainers"]
        for mount in (container["volumeMounts"], beside["extraVolumeMounts"]):
            self.assertIn({"name": "kube-coders-socket", "mountPath": "/run/kube-coders"}, mount)
        spawned = values("spawned")
        self.assertEqual(spawned["apisix"]["extPlugin"]["cmd"][:2], ["/opt/kube-coders/kube-coders", "run"])

    def test_all_pods_mark_browsers_with_one_key(self):
        """With a key for each pod, a browser would clear what it stored at each other page."""
        beside, spawned = values("beside"), values("spawned")
        [container] = beside["extraContainers"]
        runners = [
            (beside, container["args"], container["volumeMounts"]),
            (spawned, spawned["apisix"]["extPlugin"]["cmd"][1:], spawned["extraVolumeMounts"]),
        ]
        for chart, args, mounts in runners:
            self.assertGreater(chart["replicaCount"], 1)
            self.assertEqual(args, ["run", "--subject-key-file", "/etc/kube-coders/subject-key"])
            mount = {"name": "kube-coders-subject-key", "mountPath": "/etc/kube-coders", "readOnly": True}
            self.assertIn(mount, mounts)
            [volume] = [volume for volume in chart["extraVolumes"] if volume["name"] == mount["name"]]
            self.assertEqual(volume["secret"]["secretName"], "kube-coders-gateway")
            self.assertEqual(volume["secret"]["items"], [{"key": "SUBJECT_KEY", "path": "subject-key"}])
            # For the user of the runner only, whose group the volume gets.
            self.assertEqual(volume["secret"]["defaultMode"], 0o440)
            self.assertEqual(chart["podSecurityContext"]["fsGroup"], chart["podSecurityContext"]["runAsGroup"])

    def test_no_container_may_more_than_it_needs(self):
        for name in ("spawned", "beside"):
            chart = values(name)
            ours = chart.get("extraContainers", []) + chart.get("extraInitContainers", [])
            self.assertEqual(len(ours), 1)
            self.assertIs(ours[0]["securityContext"]["readOnlyRootFilesystem"], True)
            self.assertEqual(chart["podSecurityContext"]["runAsUser"], 636)
            for context in (ours[0]["securityContext"], chart["securityContext"]):
                self.assertIs(context["allowPrivilegeEscalation"], False)
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
            self.assertIs(chart["apisix"]["admin"]["enabled"], False)
            self.assertIs(chart["apisix"]["admin"]["enable_admin_ui"], False)
            # What a NetworkPolicy of a workspace admits is told by the chart's own labels.
            self.assertNotIn("nameOverride", chart)
            self.assertNotIn("labelsOverride", chart["service"])


if __name__ == "__main__":
    unittest.main()
