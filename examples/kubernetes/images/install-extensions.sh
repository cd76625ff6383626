#!/usr/bin/env bash
# Fetches the extensions of a lock file from Open VSX, checks each against its
# checksum, and unpacks them: install-extensions.sh LOCK IN FOLDER.
set -euo pipefail

open_vsx="${OPEN_VSX_URL:-https://open-vsx.org}"

fail() {
  echo "install-extensions: $*" >&2
  exit 1
}

[ $# = 3 ] || fail "needs three arguments, LOCK IN FOLDER, and got $#"
lock="$1"
list="$2"
folder="$3"
for tool in curl sha256sum unzip; do
  command -v "$tool" >/dev/null || fail "$tool is missing: it fetches, checks or unpacks the extensions"
done
[ -s "$list" ] || fail "$list is missing or empty: it names the extensions, one a line, as \"publisher.name version\""
[ -s "$lock" ] || fail "$lock is missing or empty: make it with lock-extensions.sh $list $lock"

# Comments and empty lines are no entries.
entries() { sed -e 's/[[:space:]]*#.*//' -e '/^[[:space:]]*$/d' "$1"; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# The lock has to say the same as the list, or a version was changed and not locked.
entries "$list" | awk '{ print $1, $2 }' | sort >"$work/wanted"
entries "$lock" | awk '{ print $1, $2 }' | sort >"$work/locked"
if ! difference="$(diff "$work/wanted" "$work/locked")"; then
  echo "$difference" | sed -n -e 's/^< /  only in the list: /p' -e 's/^> /  only in the lock: /p' >&2
  fail "$lock does not lock what $list names: run lock-extensions.sh $list $lock"
fi

mkdir -p "$folder"
count=0
while read -r id version sha256 rest; do
  [[ "$id" =~ ^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$ ]] \
    || fail "$lock names \"$id\", which is no publisher.name"
  [[ "$version" =~ ^[0-9][A-Za-z0-9.+-]*$ ]] \
    || fail "$lock has the version \"$version\" for $id, which is none"
  [[ "$sha256 $rest" =~ ^[0-9a-f]{64}\ $ ]] \
    || fail "$lock has no SHA-256 of 64 lower-case hex digits at the end of the line of $id $version"
  publisher="${id%%.*}"
  name="${id#*.}"
  url="$open_vsx/api/$publisher/$name/$version/file/$id-$version.vsix"
  curl --fail --silent --show-error --location --retry 3 --output "$work/vsix" "$url" \
    || fail "$url can't be fetched"
  found="$(sha256sum "$work/vsix" | cut -d ' ' -f 1)"
  [ "$found" = "$sha256" ] \
    || fail "$id $version has SHA-256 $found, and $lock says $sha256: nothing of it is unpacked"
  rm -rf "$work/unpacked"
  # Asked whether to replace a file, unzip would read the next lines of the lock.
  unzip -q -o "$work/vsix" 'extension/*' -d "$work/unpacked" </dev/null \
    || fail "$id $version is no extension: it can't be unpacked, or has no folder \"extension\""
  [ -f "$work/unpacked/extension/package.json" ] \
    || fail "$id $version is no extension: it has no extension/package.json"
  # A link in an extension leads out of it, such as into the home, which a workspace may write.
  other="$(find "$work/unpacked" ! -type f ! -type d -printf '%P\n' -quit)"
  [ -z "$other" ] \
    || fail "$id $version has $other, which is neither a file nor a folder: nothing of it is installed"
  rm -rf "${folder:?}/$id-$version"
  mv "$work/unpacked/extension" "$folder/$id-$version"
  echo "$id $version: checked and unpacked"
  count=$((count + 1))
done < <(entries "$lock")
# Files in a package may be unreadable to others; who runs code-server is not who built the image.
chmod -R u=rwX,go=rX "$folder"
echo "$count extensions in $folder"
