#!/usr/bin/env bash
# Runs one command of kcadm.sh in Keycloak's pod, as its first admin:
#
#   kcadm.sh get users -r dev --fields id,username
#
# What it needs to log in is in the pod, and the file with its tokens goes when it ends.
set -euo pipefail

[ $# -gt 0 ] || {
  echo "kcadm.sh: found no command; call it as: kcadm.sh COMMAND [ARGUMENT…], such as: kcadm.sh get realms" >&2
  exit 1
}
command -v kubectl >/dev/null || {
  echo "kcadm.sh: found no kubectl in PATH; install it and give it the cluster's kubeconfig" >&2
  exit 1
}

# shellcheck disable=SC2016
in_pod='
umask 077
config=/tmp/kcadm.$$.config
trap "rm -f $config" EXIT
trap "exit 1" HUP INT TERM
kcadm=/opt/keycloak/bin/kcadm.sh
KC_CLI_PASSWORD=$KC_BOOTSTRAP_ADMIN_PASSWORD "$kcadm" config credentials --config "$config" \
  --server http://localhost:8080 --realm master --user "$KC_BOOTSTRAP_ADMIN_USERNAME" >/dev/null </dev/null
"$kcadm" "$@" --config "$config"
'
kubectl --namespace keycloak exec --stdin deployment/keycloak --container keycloak -- sh -euc "$in_pod" kcadm "$@"
