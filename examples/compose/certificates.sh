#!/usr/bin/env bash
# Makes a private CA and a certificate of its for this example's two names, in the folder
# certificates/ next to this script. What is there and good stays as it is.
#
#   certificates.sh            make what is missing or about to end
#   certificates.sh remove     delete the folder, and with it the CA's key
set -euo pipefail
umask 077
cd "$(dirname "$0")"

folder=certificates
names=(coders.localhost key.localhost)
ca_name="kube-coders compose example"
ca_days=365
server_days=90
# A certificate that ends within these seconds is replaced.
soon=$((14 * 24 * 60 * 60))

refuse() {
  printf 'certificates.sh: %s\n' "$1" >&2
  exit 1
}

remove() {
  if [ -d "$folder" ]; then
    rm -r "$folder"
    echo "removed $PWD/$folder"
  else
    echo "nothing to remove: $PWD/$folder is not there"
  fi
  cat <<TEXT
where a browser or the system was told to trust the CA, take it out there too:
  Chrome, Edge on Linux  certutil -d "sql:\$HOME/.pki/nssdb" -D -n "$ca_name"
  Firefox                Settings, Certificates, View Certificates, Authorities, "$ca_name", Delete
  macOS                  security delete-certificate -c "$ca_name"
  Windows                certutil -user -delstore Root "$ca_name"
TEXT
}

say_how_to_trust() {
  cat <<TEXT
let your browser trust it, for as long as you use this example:
  Chrome, Edge on Linux  certutil -d "sql:\$HOME/.pki/nssdb" -A -t C,, -n "$ca_name" -i $folder/ca.crt
                         (certutil is in libnss3-tools; start the browser again)
  Firefox                Settings, Certificates, View Certificates, Authorities, Import: $folder/ca.crt
  macOS                  security add-trusted-cert -r trustRoot -k ~/Library/Keychains/login.keychain-db $folder/ca.crt
  Windows                certutil -user -addstore Root $folder\\ca.crt
and when you are done, ./certificates.sh remove says how to take that back
TEXT
}

# Secrets are written to a temporary file, which is renamed: a file that is there keeps its mode, and who has
# it open would read what is written into it.
key() {
  rm -f "$1.new"
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:named_curve \
    -out "$1.new" 2>/dev/null
  mv -f "$1.new" "$1"
}

# Whether a certificate is there, belongs to a key and lasts.
is_good() {
  [ -s "$1" ] && [ -s "$2" ] && openssl x509 -in "$1" -noout -checkend "$soon" >/dev/null 2>&1 &&
    [ "$(openssl x509 -in "$1" -noout -pubkey)" = "$(openssl pkey -in "$2" -pubout 2>/dev/null)" ]
}

# Whether the server's certificate is the CA's and has every name. macOS's openssl can't be
# asked for a name.
is_ours() {
  local text name
  openssl verify -CAfile "$folder/ca.crt" "$folder/server.crt" >/dev/null 2>&1 || return 1
  text="$(openssl x509 -in "$folder/server.crt" -noout -text | tr ',' '\n')"
  for name in "${names[@]}"; do
    grep -q "DNS:$name\$" <<<"$text" || return 1
  done
}

make_ca() {
  key "$folder/ca.key"
  # For names under localhost only, and for no address: a stolen key is valid for no other host.
  openssl req -x509 -new -key "$folder/ca.key" -days "$ca_days" -sha256 \
    -subj "/CN=$ca_name" -config <(
    printf '%s\n' '[req]' 'distinguished_name = name' 'x509_extensions = ca' '[name]' '[ca]' \
      'basicConstraints = critical, CA:TRUE, pathlen:0' \
      'keyUsage = critical, keyCertSign, cRLSign' \
      'subjectKeyIdentifier = hash' \
      'nameConstraints = critical, @constraints' '[constraints]' \
      'permitted;DNS.0 = localhost' \
      'excluded;IP.0 = 0.0.0.0/0.0.0.0' \
      'excluded;IP.1 = 0:0:0:0:0:0:0:0/0:0:0:0:0:0:0:0'
  ) -out "$folder/ca.crt"
  echo "made $PWD/$folder/ca.crt, good for $ca_days days"
}

make_server() {
  local all
  all="$(printf 'DNS:%s,' "${names[@]}")"
  key "$folder/server.key"
  openssl req -new -key "$folder/server.key" -subj "/CN=${names[0]}" -out "$folder/server.csr"
  openssl x509 -req -in "$folder/server.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days "$server_days" -sha256 -extfile <(
    printf '%s\n' \
      'basicConstraints = critical, CA:FALSE' \
      'keyUsage = critical, digitalSignature' \
      'extendedKeyUsage = serverAuth' \
      'subjectKeyIdentifier = hash' \
      'authorityKeyIdentifier = keyid' \
      "subjectAltName = ${all%,}"
  ) -out "$folder/server.crt" 2>/dev/null
  rm "$folder/server.csr"
  echo "made $PWD/$folder/server.crt for ${names[*]}, good for $server_days days"
}

# The gateway reads both from its environment. Compose turns \n into line breaks in double
# quotes; it reads the file as the user who starts it, so that no container has to.
in_one_line() {
  sed -e ':a' -e 'N' -e '$!ba' -e 's/\n/\\n/g' "$1"
}

write_environment() {
  local new
  new="$(printf 'CODERS_TLS_CERT="%s\\n"\nCODERS_TLS_KEY="%s\\n"' \
    "$(in_one_line "$folder/server.crt")" "$(in_one_line "$folder/server.key")")"
  if [ ! -f "$folder/gateway.env" ] || [ "$(cat "$folder/gateway.env")" != "$new" ]; then
    rm -f "$folder/gateway.env.new"
    printf '%s\n' "$new" >"$folder/gateway.env.new"
    mv -f "$folder/gateway.env.new" "$folder/gateway.env"
    echo "made $PWD/$folder/gateway.env"
  fi
}

command -v openssl >/dev/null || refuse "openssl is not on PATH; install it"
case "${1:-}" in
  "") ;;
  remove)
    remove
    exit
    ;;
  *) refuse "\"$1\" is no command; without one it makes certificates, with \"remove\" it deletes them" ;;
esac
if [ -e "$folder" ] && [ ! -d "$folder" ]; then refuse "$PWD/$folder is no folder; move it away"; fi

mkdir -p "$folder"
if is_good "$folder/ca.crt" "$folder/ca.key"; then
  echo "kept $PWD/$folder/ca.crt"
else
  make_ca
fi
if is_good "$folder/server.crt" "$folder/server.key" && is_ours; then
  echo "kept $PWD/$folder/server.crt"
else
  make_server
fi
write_environment
# Containers read the CA's certificate as users of their own.
chmod 0755 "$folder"
chmod 0644 "$folder/ca.crt"
chmod 0600 "$folder/ca.key" "$folder/server.key" "$folder/gateway.env"
say_how_to_trust
