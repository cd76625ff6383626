#!/usr/bin/env bash
# Makes a private certificate authority and a certificate for each host, in a folder of your own
# outside the project:
#
#   certificates.sh FOLDER [HOST…]
#
# Without hosts: coders.example.com and key.example.com. What is there and still good stays; a
# certificate that ends within 30 days, or that the authority did not sign, is made anew. The
# authority may vouch for the hosts of its first run only, so that a browser that trusts it
# trusts it for nothing else.
set -euo pipefail
umask 077

ca_days=3650
# Apple's devices take no more than 825 days, from a private authority too.
host_days=397
renew_seconds=$((30 * 24 * 3600))

fail() {
  echo "certificates.sh: $1" >&2
  exit 1
}

[ $# -ge 1 ] || fail "no folder given; call it as: certificates.sh FOLDER [HOST…]"
command -v openssl >/dev/null || fail "found no openssl in PATH; install the package openssl"

folder=$1
shift
hosts=("$@")
[ "${#hosts[@]}" -gt 0 ] || hosts=(coders.example.com key.example.com)
for host in "${hosts[@]}"; do
  [[ "$host" =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+$ ]] ||
    fail "host \"$host\" is no DNS name in lower case with a dot in it"
done

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd -P)
folder=$(realpath --canonicalize-missing -- "$folder")
case "$folder/" in
  "$project"/*) fail "folder \"$folder\" is inside the project; keys belong outside of it, such as in ~/kube-coders-tls" ;;
esac
mkdir -p "$folder"
chmod 700 "$folder"

ca_key=$folder/ca.key
ca=$folder/ca.crt

# Written beside and renamed, so that a run that is broken off leaves no half a file. What such a
# run left goes first: a file that is there keeps its mode.
make_ca() {
  local permitted="" host
  for host in "${hosts[@]}"; do permitted+="${permitted:+,}permitted;DNS:$host"; done
  rm -f "$ca_key.new" "$ca.new"
  openssl ecparam -name prime256v1 -genkey -noout -out "$ca_key.new"
  openssl req -x509 -new -sha256 -key "$ca_key.new" -days "$ca_days" -out "$ca.new" -config /dev/null \
    -subj "/CN=kube-coders private CA" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -addext "subjectKeyIdentifier=hash" \
    -addext "nameConstraints=critical,$permitted"
  mv "$ca_key.new" "$ca_key"
  mv "$ca.new" "$ca"
  echo "made    $ca and its key"
}

make_certificate() {
  local host=$1 key=$folder/$1.key certificate=$folder/$1.crt
  rm -f "$key.new" "$certificate.new"
  openssl ecparam -name prime256v1 -genkey -noout -out "$key.new"
  openssl req -new -sha256 -key "$key.new" -subj "/CN=$host" -out "$folder/$host.csr" -config /dev/null
  openssl x509 -req -sha256 -in "$folder/$host.csr" -CA "$ca" -CAkey "$ca_key" -set_serial "0x$(openssl rand -hex 16)" \
    -days "$host_days" -out "$certificate.new" -extfile <(
      echo "basicConstraints=critical,CA:FALSE"
      echo "keyUsage=critical,digitalSignature"
      echo "extendedKeyUsage=serverAuth"
      echo "subjectAltName=DNS:$host"
      echo "subjectKeyIdentifier=hash"
      echo "authorityKeyIdentifier=keyid"
    ) 2>/dev/null
  rm "$folder/$host.csr"
  openssl verify -CAfile "$ca" -verify_hostname "$host" "$certificate.new" >/dev/null 2>&1 || {
    rm -f "$certificate.new" "$key.new"
    fail "the authority in $ca may not vouch for \"$host\", which is no host of its first run; move $ca and $ca_key away to make a new one"
  }
  mv "$key.new" "$key"
  mv "$certificate.new" "$certificate"
  echo "made    $certificate and its key"
}

# Whether the host's certificate is there, good for 30 days more, the authority's, and its key's.
is_good() {
  local host=$1 key=$folder/$1.key certificate=$folder/$1.crt
  [ -f "$key" ] && [ -f "$certificate" ] &&
    openssl x509 -in "$certificate" -noout -checkend "$renew_seconds" >/dev/null &&
    openssl verify -CAfile "$ca" -verify_hostname "$host" "$certificate" >/dev/null 2>&1 &&
    [ "$(openssl x509 -in "$certificate" -noout -pubkey)" = "$(openssl pkey -in "$key" -pubout)" ]
}

if [ -f "$ca_key" ] && [ -f "$ca" ]; then
  [ "$(openssl x509 -in "$ca" -noout -pubkey)" = "$(openssl pkey -in "$ca_key" -pubout)" ] ||
    fail "$ca and $ca_key do not belong together; move both away to make new ones"
  openssl x509 -in "$ca" -noout -checkend "$((host_days * 24 * 3600))" >/dev/null ||
    fail "the authority in $ca ends before a new certificate would; move it and $ca_key away to make a new one"
  echo "kept    $ca"
elif [ -e "$ca_key" ] || [ -e "$ca" ]; then
  fail "found only one of $ca and $ca_key; put the other back, or move this one away to make new ones"
else
  make_ca
fi

for host in "${hosts[@]}"; do
  if is_good "$host"; then
    echo "kept    $folder/$host.crt"
  else
    make_certificate "$host"
  fi
done
# Certificates are no secret; keys stay at 0600.
chmod 644 "$folder"/*.crt
chmod 600 "$folder"/*.key
