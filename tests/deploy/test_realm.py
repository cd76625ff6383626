"""examples/compose/keycloak/realm-dev.json: what the gateway and the runner need of it."""

import base64
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import unittest
import uuid

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "compose"
KUBE_CODERS = os.environ.get("KUBE_CODERS", str(ROOT / "target" / "debug" / "kube-coders"))


def run(*command, **options):
    return subprocess.run(command, text=True, capture_output=True, check=False, **options)


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Realm(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.realm = json.loads((FOLDER / "keycloak" / "realm-dev.json").read_text(encoding="utf-8"))
        (self.client,) = self.realm["clients"]
        self.users = self.realm["users"]
        self.assertTrue(self.users, "nothing was looked at")
        routes = yaml.safe_load((FOLDER / "apisix" / "apisix.yaml").read_text(encoding="utf-8"))
        (service,) = routes["services"]
        (conf,) = service["plugins"]["ext-plugin-pre-req"]["conf"]
        self.conf = json.loads(conf["value"])
        found = [one["plugins"].get("openid-connect") for one in routes["routes"] if "plugins" in one]
        self.logins = [login for login in found if login]
        self.assertEqual(len(self.logins), 2)

    def mapper(self, kind):
        (found,) = [one for one in self.client["protocolMappers"] if one["protocolMapper"] == kind]
        return found["config"]


class Client(Realm):
    def test_it_is_the_routes_client(self):
        for login in self.logins:
            self.assertEqual(login["client_id"], self.client["clientId"])
            self.assertEqual(login["discovery"].split("/realms/")[1].split("/")[0], self.realm["realm"])

    def test_it_has_a_secret_and_the_standard_flow_and_nothing_else(self):
        self.assertEqual(self.client["clientAuthenticatorType"], "client-secret")
        for field, expected in {
            "enabled": True,
            "standardFlowEnabled": True,
            "publicClient": False,
            "bearerOnly": False,
            "implicitFlowEnabled": False,
            "directAccessGrantsEnabled": False,
            "serviceAccountsEnabled": False,
            "fullScopeAllowed": False,
        }.items():
            self.assertIs(self.client[field], expected, field)
        attributes = self.client["attributes"]
        self.assertEqual(attributes["oauth2.device.authorization.grant.enabled"], "false")
        self.assertEqual(attributes["oidc.ciba.grant.enabled"], "false")

    def test_codes_are_bound_to_their_client(self):
        self.assertEqual(self.client["attributes"]["pkce.code.challenge.method"], "S256")
        for login in self.logins:
            self.assertIs(login["use_pkce"], True)
            self.assertIs(login["use_nonce"], True)

    def test_addresses_are_the_routes_and_exact(self):
        self.assertEqual({login["redirect_uri"] for login in self.logins}, set(self.client["redirectUris"]))
        after = self.client["attributes"]["post.logout.redirect.uris"].split("##")
        self.assertEqual({login["post_logout_redirect_uri"] for login in self.logins}, set(after))
        for address in self.client["redirectUris"] + after + self.client["webOrigins"]:
            self.assertNotRegex(address, r"[*+]", address)
            self.assertTrue(address.startswith("https://"), address)

    def test_tokens_are_signed_with_an_algorithm_that_the_runner_takes(self):
        source = (ROOT / "crates" / "identity" / "src" / "token.rs").read_text(encoding="utf-8")
        taken = re.findall(r'^    \("([A-Za-z0-9]+)", Algorithm::', source, re.MULTILINE)
        self.assertIn("RS256", taken)
        self.assertIn(self.realm["defaultSignatureAlgorithm"], taken)
        attributes = self.client["attributes"]
        for kind in ("id.token", "access.token"):
            self.assertIn(attributes[f"{kind}.signed.response.alg"], taken)

    def test_tokens_have_the_claims_that_the_conf_reads(self):
        # `basic` has the mapper for `sub`, `profile` the one for `preferred_username`.
        self.assertEqual(self.client["defaultClientScopes"], ["basic", "profile"])
        # With scopes of its own, a realm would get none of the built-in ones at its import.
        self.assertNotIn("clientScopes", self.realm)
        groups = self.mapper("oidc-group-membership-mapper")
        self.assertEqual(groups["claim.name"], "groups")
        self.assertNotIn("claims", self.conf, "the runner's default is `groups`")
        for field in ("full.path", "id.token.claim", "access.token.claim"):
            self.assertEqual(groups[field], "true", field)
        audience = self.mapper("oidc-audience-mapper")
        self.assertEqual([audience["included.client.audience"]], self.conf["identity"]["audience"])
        self.assertEqual(audience["access.token.claim"], "true")
        # Keycloak writes the client's own ID into an ID token's `aud`.
        self.assertEqual([self.client["clientId"]], self.conf["identity"]["audience"])

    def test_sessions_last_as_long_as_the_gateways(self):
        for login in self.logins:
            self.assertEqual(login["session"]["idling_timeout"], self.realm["ssoSessionIdleTimeout"])
            self.assertEqual(login["session"]["absolute_timeout"], self.realm["ssoSessionMaxLifespan"])
        self.assertLessEqual(self.realm["accessTokenLifespan"], 300)

    def test_guessing_passwords_is_slow(self):
        self.assertIs(self.realm["bruteForceProtected"], True)
        self.assertLessEqual(self.realm["failureFactor"], 10)
        self.assertIs(self.realm["registrationAllowed"], False)


class Users(Realm):
    def test_their_ids_are_fixed_and_different(self):
        self.assertEqual([user["username"] for user in self.users], ["alice", "bob"])
        ids = [user["id"] for user in self.users]
        for subject in ids:
            self.assertEqual(str(uuid.UUID(subject)), subject)
        self.assertEqual(len(set(ids)), len(ids))

    def test_they_are_in_a_group_that_is_let_in_and_exists(self):
        paths = ["/" + group["name"] for group in self.realm["groups"]]
        self.assertEqual(self.conf["allow"]["groups"], paths)
        for user in self.users:
            self.assertEqual(user["groups"], paths)

    def test_a_login_asks_them_for_nothing_more(self):
        for user in self.users:
            self.assertIs(user["enabled"], True)
            self.assertIs(user["emailVerified"], True)
            self.assertNotIn("requiredActions", user)
            for field in ("email", "firstName", "lastName"):
                self.assertTrue(user[field], field)
            # An import gives the default roles only to those who name them.
            self.assertEqual(user["realmRoles"], ["default-roles-" + self.realm["realm"]])


class NoSecret(Realm):
    def test_each_secret_is_a_placeholder(self):
        secrets = [self.client["secret"]]
        for user in self.users:
            (credential,) = user["credentials"]
            self.assertEqual(sorted(credential), ["temporary", "type", "value"])
            secrets.append(credential["value"])
        self.assertEqual(
            secrets, ["${KEYCLOAK_CLIENT_SECRET}", "${ALICE_PASSWORD}", "${BOB_PASSWORD}"]
        )
        named = re.findall(
            r'"(?:secret|value|secretData|privateKey)": "([^"]*)"', json.dumps(self.realm)
        )
        self.assertEqual(sorted(named), sorted(secrets), "nothing else that is secret")


class Decision(Realm):
    """A token as this realm makes it, signed by a key of the test's, and what is decided."""

    def setUp(self):
        super().setUp()
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        made = run("openssl", "genrsa", "-out", str(self.folder / "key.pem"), "2048")
        self.assertEqual(made.returncode, 0, made.stderr)
        told = run("openssl", "rsa", "-in", str(self.folder / "key.pem"), "-noout", "-modulus")
        modulus = bytes.fromhex(told.stdout.strip().removeprefix("Modulus="))
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": base64url(modulus), "e": "AQAB"}
        (self.folder / "keys.json").write_text(json.dumps({"keys": [key]}), encoding="ascii")
        # The conf's own file is only there in the container.
        ca = str(self.folder / "ca.crt")
        run(
            *"openssl req -x509 -days 1 -subj /CN=x -key".split(),
            *[str(self.folder / "key.pem"), "-out", ca],
        )
        self.conf["identity"]["ca_file"] = ca

    def token(self, user, **changes):
        now = int(time.time())
        claims = {
            "iss": self.conf["identity"]["issuer"],
            "aud": self.client["clientId"],
            "azp": self.client["clientId"],
            "sub": user["id"],
            "typ": "ID",
            "iat": now,
            "exp": now + self.realm["accessTokenLifespan"],
            self.mapper("oidc-group-membership-mapper")["claim.name"]: user["groups"],
            "preferred_username": user["username"],
        }
        claims.update(changes)
        header = {"alg": self.realm["defaultSignatureAlgorithm"], "typ": "JWT", "kid": "1"}
        message = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
        signed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self.folder / "key.pem")],
            input=message.encode(),
            capture_output=True,
            check=True,
        )
        return f"{message}.{base64url(signed.stdout)}"

    def explain(self, token):
        keys = f"@{self.folder / 'keys.json'}"
        command = [KUBE_CODERS, "explain", "--conf", json.dumps(self.conf), "--keys", keys]
        return run(*command, "--token", token)

    def test_each_user_gets_to_their_own_workspace(self):
        for user in self.users:
            explained = self.explain(self.token(user))
            self.assertEqual(explained.returncode, 0, explained.stdout + explained.stderr)
            self.assertIn(f"It goes to http://code-{user['id']}:8443", explained.stdout)

    def test_an_access_token_of_this_realm_is_as_good(self):
        # With the audience mapper, `aud` is a list.
        explained = self.explain(self.token(self.users[0], aud=["apisix", "account"], typ="Bearer"))
        self.assertEqual(explained.returncode, 0, explained.stdout + explained.stderr)

    def test_a_user_in_no_group_is_not_admitted(self):
        explained = self.explain(self.token(self.users[0], groups=[]))
        self.assertEqual(explained.returncode, 1, explained.stdout + explained.stderr)
        self.assertIn("not-allowed", explained.stdout)

    def test_a_token_for_another_client_is_refused(self):
        explained = self.explain(self.token(self.users[0], aud="other"))
        self.assertEqual(explained.returncode, 1, explained.stdout + explained.stderr)
        self.assertIn("token-invalid", explained.stdout)


if __name__ == "__main__":
    unittest.main()
