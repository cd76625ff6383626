#!/usr/bin/env bash
# Makes the Secrets of Keycloak and of the gateway in the cluster that kubectl talks to: random
# values that are written nowhere else. A Secret that is there stays as it is.
#
#   secrets.sh
set -euo pipefail
umask 077

fail() {
  echo "secrets.sh: $1" >&2
  exit 1
}

[ $# -eq 0 ] || fail "found the argument \"$1\"; call it without any"
command -v kubectl >/dev/null || fail "found no kubectl in PATH; install it and give it the cluster's kubeconfig"
command -v openssl >/dev/null || fail "found no openssl in PATH; install the package openssl"
for namespace in keycloak apisix; do
  kubectl get namespace "$namespace" >/dev/null ||
    fail "can't read namespace \"$namespace\": kubectl says why above. If it is not found, apply namespaces.yaml first"
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

random() { openssl rand -hex 32 | tr -d '\n' >"$folder/$1"; }
# Ends here if kubectl can't tell: a Secret that may be there must not be made a second time.
exists() {
  local found
  found=$(kubectl --namespace "$1" get secret "$2" --ignore-not-found --output name) ||
    fail "can't read secret/$2 in namespace $1: kubectl says why above"
  [ -n "$found" ]
}
label() { kubectl --namespace "$1" label --overwrite secret "$2" app.kubernetes.io/part-of=kube-coders >/dev/null; }

# Ends here if a Secret that is there lacks a key: kubectl prints nothing for it, and nothing would
# become the secret of the gateway.
has() {
  local namespace=$1 secret=$2 key value
  for key in "${@:3}"; do
    value=$(kubectl --namespace "$namespace" get secret "$secret" --output "jsonpath={.data.$key}") ||
      fail "found no way to read secret/$secret in namespace $namespace"
    [ -n "$value" ] || fail "secret/$secret in namespace $namespace has no \"$key\", or an empty one; \
put it in with: kubectl --namespace $namespace edit secret $secret"
  done
}

if exists keycloak keycloak; then
  has keycloak keycloak postgres-password admin-password client-secret
  echo "kept    secret/keycloak in namespace keycloak"
else
  random postgres-password
  random admin-password
  random client-secret
  kubectl --namespace keycloak create secret generic keycloak \
    --from-file="$folder/postgres-password" --from-file="$folder/admin-password" --from-file="$folder/client-secret" >/dev/null
  label keycloak keycloak
  echo "made    secret/keycloak in namespace keycloak: postgres-password, admin-password, client-secret"
fi

# Both ends of the login have the same client secret, so this one is read from the other.
client_secret() {
  kubectl --namespace keycloak get secret keycloak --output 'jsonpath={.data.client-secret}' | base64 -d
}

if exists apisix kube-coders-gateway; then
  has apisix kube-coders-gateway KEYCLOAK_CLIENT_SECRET SESSION_SECRET SUBJECT_KEY
  echo "kept    secret/kube-coders-gateway in namespace apisix"
  in_gateway=$(kubectl --namespace apisix get secret kube-coders-gateway --output 'jsonpath={.data.KEYCLOAK_CLIENT_SECRET}' | base64 -d)
  [ "$in_gateway" = "$(client_secret)" ] ||
    fail "KEYCLOAK_CLIENT_SECRET of secret/kube-coders-gateway in apisix is not client-secret of secret/keycloak in keycloak; \
delete the gateway's Secret, run this again, and restart the gateway"
else
  client_secret >"$folder/KEYCLOAK_CLIENT_SECRET"
  random SESSION_SECRET
  random SUBJECT_KEY
  kubectl --namespace apisix create secret generic kube-coders-gateway \
    --from-file="$folder/KEYCLOAK_CLIENT_SECRET" --from-file="$folder/SESSION_SECRET" \
    --from-file="$folder/SUBJECT_KEY" >/dev/null
  label apisix kube-coders-gateway
  echo "made    secret/kube-coders-gateway in namespace apisix: KEYCLOAK_CLIENT_SECRET, SESSION_SECRET, SUBJECT_KEY"
fi

# Only a gateway with an Admin API reads it. The chart wants both keys.
if exists apisix apisix-admin-key; then
  has apisix apisix-admin-key admin viewer
  echo "kept    secret/apisix-admin-key in namespace apisix"
else
  random admin
  random viewer
  kubectl --namespace apisix create secret generic apisix-admin-key \
    --from-file="$folder/admin" --from-file="$folder/viewer" >/dev/null
  label apisix apisix-admin-key
  echo "made    secret/apisix-admin-key in namespace apisix: admin, viewer"
fi
