#!/usr/bin/env bash
# Writes the checksums of the extensions that a list names:
# lock-extensions.sh IN LOCK, such as backend/extensions.in backend/extensions.lock.
#
# What is downloaded now is what every later build has to get. It is compared with
# the checksum that Open VSX publishes beside it and, for a version that LOCK has
# already, with that one.
set -euo pipefail

open_vsx="${OPEN_VSX_URL:-https://open-vsx.org}"

fail() {
  echo "lock-extensions: $*" >&2
  exit 1
}

[ $# = 2 ] || fail "needs two arguments, IN LOCK, and got $#"
list="$1"
lock="$2"
for tool in curl sha256sum; do
  command -v "$tool" >/dev/null || fail "$tool is missing: it fetches or checks the extensions"
done
[ -s "$list" ] || fail "$list is missing or empty: it names the extensions, one a line, as \"publisher.name version\""

entries() { sed -e 's/[[:space:]]*#.*//' -e '/^[[:space:]]*$/d' "$1"; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

fetch() {
  curl --fail --silent --show-error --location --retry 3 --output "$2" "$1" || fail "$1 can't be fetched"
}

line=0
while read -r id version rest; do
  line=$((line + 1))
  entry="$id${version:+ $version}${rest:+ $rest}"
  [[ "$entry" =~ ^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\ [0-9][A-Za-z0-9.+-]*$ ]] \
    || fail "entry $line of $list is \"$entry\", and has to be \"publisher.name version\""
  if awk '{ print $1 }' "$work/new" 2>/dev/null | grep -qixF "$id"; then fail "$list names $id twice"; fi
  file="$open_vsx/api/${id%%.*}/${id#*.}/$version/file/$id-$version"
  fetch "$file.vsix" "$work/vsix"
  fetch "$file.sha256" "$work/sha256"
  found="$(sha256sum "$work/vsix" | cut -d ' ' -f 1)"
  published="$(tr -d '[:space:]' <"$work/sha256")"
  [ "$found" = "$published" ] \
    || fail "$id $version has SHA-256 $found, and Open VSX publishes $published for it"
  if [ -f "$lock" ]; then
    before="$(entries "$lock" | awk -v id="$id" -v version="$version" '$1 == id && $2 == version { print $3 }')"
    [ -z "$before" ] || [ "$before" = "$found" ] \
      || fail "$id $version has SHA-256 $found, and $lock says $before: a published version has changed"
  fi
  echo "$id $version $found" >>"$work/new"
  echo "$id $version: $found"
done < <(entries "$list")
[ -s "$work/new" ] || fail "$list names no extension"

{
  echo "# Made by lock-extensions.sh from $(basename "$list"): publisher.name, version, SHA-256 of the package."
  cat "$work/new"
} >"$work/lock"
# Only a whole lock takes the old one's place.
cp "$work/lock" "$lock"
echo "$(wc -l <"$work/new") extensions in $lock"
