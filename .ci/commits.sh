#!/usr/bin/env bash
# Fails if a commit after the one named is a merge, or has a subject that is too long, does
# not begin with a capital letter, ends with a full stop, or is not in the imperative, as far
# as its first word's ending shows that.
#
#   .ci/commits.sh BASE
set -euo pipefail

longest=72
base=$1
if ! git merge-base --is-ancestor "$base" HEAD 2>/dev/null; then
  echo "$base is not below HEAD here (a shallow clone?): only the last commit is looked at"
  range=(--max-count=1 HEAD)
else
  range=("$base..HEAD")
fi

found=0
tell() {
  echo "$1: $2"
  found=1
}

while read -r commit subject; do
  line="$commit $subject"
  first=${subject%% *}
  if [ "${#subject}" -gt "$longest" ]; then tell "$line" "${#subject} characters, of at most $longest"; fi
  if [[ ! $subject =~ ^[A-Z] ]]; then tell "$line" "begins with no capital letter"; fi
  if [[ $subject == *. ]]; then tell "$line" "ends with a full stop"; fi
  case $first in
    *:) tell "$line" "begins with a place: say what the commit does" ;;
    Bring | Embed | Exceed | Feed | Need | Proceed | Seed | Shed | Speed | Spring | String | Swing | Wed) ;;
    *ed | *ing) tell "$line" "is not in the imperative: $first" ;;
    Access | Address | Bypass | Compress | Cross | Discuss | Dismiss | Express | Focus | Pass | Press | Process | Stress) ;;
    *s) tell "$line" "is not in the imperative: $first" ;;
  esac
done < <(git log --no-merges --format='%h %s' "${range[@]}")

while read -r line; do
  if [ -n "$line" ]; then tell "$line" "is a merge, and the log is a line"; fi
done < <(git log --merges --format='%h %s' "${range[@]}")

exit "$found"
