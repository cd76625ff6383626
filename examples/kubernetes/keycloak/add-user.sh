#!/usr/bin/env bash
# Makes a user of the realm `dev` who is in the group /developers, and prints the subject, which
# names the workspace, and a password for the first login only. A user who is there stays.
#
#   add-user.sh USERNAME EMAIL FIRST-NAME LAST-NAME
set -euo pipefail
umask 077

fail() {
  echo "add-user.sh: $1" >&2
  exit 1
}

[ $# -eq 4 ] || fail "found $# arguments; call it as: add-user.sh USERNAME EMAIL FIRST-NAME LAST-NAME"
username=$1 email=$2 first_name=$3 last_name=$4
[[ "$username" =~ ^[a-z0-9][-a-z0-9._@]*$ ]] ||
  fail "username \"$username\" has other characters than a-z, 0-9 and -._@, or begins with one of these four"
command -v kubectl >/dev/null || fail "found no kubectl in PATH; install it and give it the cluster's kubeconfig"
command -v openssl >/dev/null || fail "found no openssl in PATH; install the package openssl"

# In Keycloak's own pod: the admin API is reached from nowhere else. What a command needs beside
# its arguments comes on standard input, and is seen in no list of processes.
in_keycloak() {
  kubectl --namespace keycloak exec --stdin deployment/keycloak --container keycloak -- sh -euc "$@"
}

# The variables belong to the shell in the pod.
# shellcheck disable=SC2016
in_keycloak 'KC_CLI_PASSWORD=$KC_BOOTSTRAP_ADMIN_PASSWORD /opt/keycloak/bin/kcadm.sh config credentials \
  --config /tmp/kcadm.config --server http://localhost:8080 --realm master --user "$KC_BOOTSTRAP_ADMIN_USERNAME"' \
  </dev/null >/dev/null || fail "found no way into Keycloak as its first admin; is deployment/keycloak ready in namespace keycloak?"

# shellcheck disable=SC2016
find_user() {
  in_keycloak '/opt/keycloak/bin/kcadm.sh get users --config /tmp/kcadm.config -r dev \
    -q "username=$1" -q exact=true --fields id --format csv --noquotes' find "$username" </dev/null
}

subject=$(find_user)
if [ -n "$subject" ]; then
  echo "kept     $username"
else
  # shellcheck disable=SC2016
  in_keycloak '/opt/keycloak/bin/kcadm.sh create users --config /tmp/kcadm.config -r dev -s enabled=true \
    -s "username=$1" -s "email=$2" -s emailVerified=true -s "firstName=$3" -s "lastName=$4" \
    -s "groups=[\"/developers\"]"' create "$username" "$email" "$first_name" "$last_name" </dev/null >/dev/null
  password=$(openssl rand -base64 18)
  # shellcheck disable=SC2016
  in_keycloak 'KC_CLI_PASSWORD=$(cat) /opt/keycloak/bin/kcadm.sh set-password --config /tmp/kcadm.config -r dev \
    --username "$1" --temporary' set-password "$username" <<<"$password" >/dev/null
  subject=$(find_user)
  echo "made     $username"
  echo "password $password (for the first login, which asks for another)"
fi
echo "subject  $subject"
