#!/usr/bin/env bash
# Makes .env next to this script: .env.example with a random value for each secret that has
# none. What .env has already stays as it is.
set -euo pipefail
umask 077
cd "$(dirname "$0")"

refuse() {
  printf 'secrets.sh: %s\n' "$1" >&2
  exit 1
}

command -v openssl >/dev/null || refuse "openssl is not on PATH; install it, it makes the random values"
[ -f .env.example ] || refuse "$PWD/.env.example is missing; take it from the repository again"
if [ -e .env ] && [ ! -f .env ]; then refuse "$PWD/.env is no file; move it away"; fi

old=.env
[ -f "$old" ] || old=.env.example
made=()
new="$(mktemp .env.XXXXXX)"
trap 'rm -f "$new" "$new.missing"' EXIT

# Prints a file, with a value behind each name that has none. A value may end in `=`, too.
fill() {
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    if [[ $line =~ ^[A-Z_]+=$ ]]; then
      line+="$(openssl rand -hex 16)"
      made+=("${line%%=*}")
    fi
    printf '%s\n' "$line"
  done
}

fill <"$old" >"$new"
if [ "$old" = .env ]; then
  # What the example has and .env has not, since it was made.
  while IFS= read -r line; do
    if ! grep -q "^$line" .env; then printf '%s\n' "$line"; fi
  done < <(grep -E '^[A-Z_]+=$' .env.example) >"$new.missing"
  fill <"$new.missing" >>"$new"
fi

if [ "${#made[@]}" -eq 0 ]; then
  chmod 0600 .env
  echo "nothing to make: $PWD/.env has every secret"
else
  mv "$new" .env
  echo "made in $PWD/.env: ${made[*]}"
fi
