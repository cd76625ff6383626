#!/usr/bin/env bash
# Puts the route's objects into a gateway by its Admin API. See README.md, or --help.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'END'
Usage: put.sh [--mode forward|direct] [--dry-run]

Puts the service, the four routes and, if asked to, the certificate by the Admin API.
Each PUT creates or replaces its object, so the script can be run again. It stops at the
first response that is not 2xx.

  --mode MODE  forward (default): through the runner's forwarder
               direct: the gateway goes to the workspaces itself
  --dry-run    print the objects and their paths, and send nothing

From the environment:
  APISIX_ADMIN_KEY     the key, needed unless with --dry-run
  APISIX_ADMIN_URL     default http://127.0.0.1:9180; http only on this machine
  CODERS_TLS_SNI       the certificate's host, default coders.example.com
  CODERS_TLS_CERT_FILE and CODERS_TLS_KEY_FILE
                       PEM files of the certificate with its chain, and of its key;
                       without them no certificate is put
END
}

fail() {
  printf 'put.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

mode=forward
dry_run=
while [ $# -gt 0 ]; do
  case $1 in
    --mode)
      [ $# -ge 2 ] || fail "--mode needs a value: forward or direct" 2
      mode=$2
      shift
      ;;
    --mode=*) mode=${1#--mode=} ;;
    --dry-run) dry_run=yes ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) fail "unknown argument '$1': see --help" 2 ;;
  esac
  shift
done
case $mode in
  forward) service='service.json' ;;
  direct) service='service-direct.json' ;;
  *) fail "mode '$mode' is neither forward nor direct" 2 ;;
esac

url=${APISIX_ADMIN_URL:-http://127.0.0.1:9180}
url=${url%/}
# Without TLS, anyone on the network could read the API key and the certificate's key.
case $url in
  https://*) ;;
  http://127.0.0.1 | http://127.0.0.1[:/]*) ;;
  http://localhost | http://localhost[:/]*) ;;
  'http://[::1]' | 'http://[::1]'[:/]*) ;;
  http://*) fail "APISIX_ADMIN_URL is '$url', http to another machine: use https, or a tunnel such as kubectl port-forward" 2 ;;
  *) fail "APISIX_ADMIN_URL is '$url', no http or https URL" 2 ;;
esac
# An @ would make the text before it a password.
[[ $url =~ ^https?://[][A-Za-z0-9.:-]+(/[A-Za-z0-9._~/-]*)?$ ]] || fail "APISIX_ADMIN_URL is '$url', not scheme, host and port" 2

key=${APISIX_ADMIN_KEY:-}
# Programs that are started from here need not have it.
unset APISIX_ADMIN_KEY
if [ -z "$dry_run" ]; then
  [ -n "$key" ] || fail "APISIX_ADMIN_KEY is empty: export the admin key of the gateway's config.yaml" 2
  [[ $key =~ ^[[:graph:]]+$ ]] || fail "APISIX_ADMIN_KEY has a space or a control character in it" 2
  command -v curl >/dev/null || fail "curl is not installed" 2
fi

# Prints the PEM blocks of a file whose label ends with $2, as one line of JSON with \n for
# each line's end.
pem() {
  local file=$1 label=$2 text='' line inside=
  [ -r "$file" ] || fail "'$file' can't be read" 2
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line%$'\r'}
    [[ $line != "-----BEGIN "*"$label-----" ]] || inside=yes
    if [ -n "$inside" ]; then
      [[ $line =~ ^[A-Za-z0-9+/=\ -]*$ ]] || fail "'$file' has more than base64 in a PEM block" 2
      text+="$line\\n"
    fi
    [[ $line != "-----END "*"$label-----" ]] || inside=
  done <"$file"
  [ -n "$text" ] || fail "'$file' has no PEM block '$label' in it" 2
  [ -z "$inside" ] || fail "'$file' ends within a PEM block" 2
  printf '%s' "$text"
}

# Puts the object from standard input. The key goes to curl through a pipe, because all users can
# read the arguments of a process. curl reads no .curlrc, which could make it write all that it
# sends into a file.
put() {
  local path=$1 answer status
  if [ -n "$dry_run" ]; then
    printf 'PUT %s/apisix/admin/%s\n' "$url" "$path"
    cat
    return
  fi
  answer=$(curl --disable --silent --show-error --noproxy '*' --connect-timeout 5 --max-time 30 \
    --request PUT --header "Content-Type: application/json" \
    --header @<(printf 'X-API-KEY: %s\n' "$key") \
    --data-binary @- --write-out '\n%{http_code}' "$url/apisix/admin/$path") ||
    fail "PUT $url/apisix/admin/$path failed; nothing after it was put"
  status=${answer##*$'\n'}
  case $status in
    2??) printf '%s %s\n' "$status" "$path" ;;
    *)
      printf '%s\n' "${answer%$'\n'*}" >&2
      fail "PUT $url/apisix/admin/$path was answered with $status; nothing after it was put"
      ;;
  esac
}

ssl=
cert_file=${CODERS_TLS_CERT_FILE:-}
key_file=${CODERS_TLS_KEY_FILE:-}
sni=${CODERS_TLS_SNI:-coders.example.com}
if [ -n "$cert_file" ] && [ -n "$key_file" ]; then
  [[ $sni =~ ^[a-z0-9.*-]+$ ]] || fail "CODERS_TLS_SNI is '$sni', no host name" 2
  tls_cert=$(pem "$cert_file" CERTIFICATE)
  tls_key=$(pem "$key_file" 'PRIVATE KEY')
  [[ $tls_key != *'BEGIN ENCRYPTED'* ]] || fail "'$key_file' is encrypted: the gateway could not read it" 2
  [ -z "$dry_run" ] || tls_key='(the content of CODERS_TLS_KEY_FILE)'
  ssl="{\"snis\": [\"$sni\"], \"cert\": \"$tls_cert\", \"key\": \"$tls_key\"}"
elif [ -n "$cert_file$key_file" ]; then
  fail "of CODERS_TLS_CERT_FILE and CODERS_TLS_KEY_FILE only one is set" 2
fi

objects=("services/workspaces $service")
for route in workspaces workspaces-login healthz favicon; do
  objects+=("routes/$route route-$route.json")
done
for object in "${objects[@]}"; do
  [ -r "$here/${object#* }" ] || fail "'$here/${object#* }' can't be read" 2
done

# The certificate first, and the service before its routes: if this stops half way, no route lacks
# its certificate or service.
if [ -n "$ssl" ]; then
  put ssls/coders < <(printf '%s\n' "$ssl")
else
  printf 'no certificate is put: CODERS_TLS_CERT_FILE and CODERS_TLS_KEY_FILE are not set\n'
fi
for object in "${objects[@]}"; do
  put "${object%% *}" <"$here/${object#* }"
done
