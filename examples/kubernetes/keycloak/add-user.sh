#!/usr/bin/env bash
# Makes a user of the realm `dev` who is in the group /developers, and prints the subject, which
# names the workspace, and a password for the first login only. A user who is there stays, and
# gets a password only if they have none, or with --reset-password.
#
#   add-user.sh [--reset-password] USERNAME EMAIL FIRST-NAME LAST-NAME
set -euo pipefail
umask 077

fail() {
  echo "add-user.sh: $1" >&2
  exit 1
}

reset=
if [ "${1:-}" = --reset-password ]; then
  reset=yes
  shift
fi
[ $# -eq 4 ] || fail "found $# arguments; call it as: add-user.sh [--reset-password] USERNAME EMAIL FIRST-NAME LAST-NAME"
[[ "$1" =~ ^[a-z0-9][-a-z0-9._@]*$ ]] ||
  fail "username \"$1\" has other characters than a-z, 0-9 and -._@, or begins with one of these four"
command -v kubectl >/dev/null || fail "found no kubectl in PATH; install it and give it the cluster's kubeconfig"
command -v openssl >/dev/null || fail "found no openssl in PATH; install the package openssl"

# Runs in Keycloak's own pod, for the admin API is reached from nowhere else, and in one piece: the
# file with the admin's tokens goes when it ends, however it ends.
# shellcheck disable=SC2016
in_pod='
umask 077
config=/tmp/kcadm.$$.config
trap "rm -f $config" EXIT
trap "exit 1" HUP INT TERM
kcadm=/opt/keycloak/bin/kcadm.sh
read -r password
reset=$1 username=$2

KC_CLI_PASSWORD=$KC_BOOTSTRAP_ADMIN_PASSWORD "$kcadm" config credentials --config "$config" \
  --server http://localhost:8080 --realm master --user "$KC_BOOTSTRAP_ADMIN_USERNAME" >/dev/null || exit 3

find_user() {
  "$kcadm" get users -r dev -q "username=$username" -q exact=true --fields id --format csv --noquotes --config "$config"
}

subject=$(find_user)
if [ -n "$subject" ]; then
  echo "kept     $username"
else
  "$kcadm" create users -r dev -s enabled=true -s "username=$username" -s "email=$3" -s emailVerified=true \
    -s "firstName=$4" -s "lastName=$5" -s "groups=[\"/developers\"]" --config "$config" >/dev/null
  subject=$(find_user)
  echo "made     $username"
fi
# Whatever broke an earlier run off, nobody is left without a password.
types=$("$kcadm" get "users/$subject/credentials" -r dev --fields type --format csv --noquotes --config "$config")
for type in $types; do
  if [ "$type" = password ] && [ -z "$reset" ]; then password=; fi
done
if [ -n "$password" ]; then
  KC_CLI_PASSWORD=$password "$kcadm" set-password -r dev --username "$username" --temporary --config "$config" >/dev/null
  echo password
fi
echo "subject  $subject"
'

# The password comes on standard input, and is seen in no list of processes.
password=$(openssl rand -base64 18)
status=0
answer=$(printf '%s\n' "$password" |
  kubectl --namespace keycloak exec --stdin deployment/keycloak --container keycloak -- \
    sh -euc "$in_pod" add-user "$reset" "$@") || status=$?
while IFS= read -r line; do
  [ "$line" != password ] || line="password $password (for the first login, which asks for another)"
  [ -z "$line" ] || echo "$line"
done <<<"$answer"
case "$status" in
  0) ;;
  3) fail "found no way into Keycloak as its first admin; is deployment/keycloak ready in namespace keycloak?" ;;
  *) fail "ended early, for the reason above; what it made stays, so run it again once that is mended" ;;
esac
