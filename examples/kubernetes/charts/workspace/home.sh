# What a new volume needs before code-server starts.
if ! touch "$HOME/.writable"; then
  echo "$HOME belongs to $(stat -c 'uid %u, gid %g, mode %a' "$HOME"), and uid $(id -u) can't write there:" \
    "see the chart's README, \"What the volume needs\"" >&2
  exit 1
fi
rm "$HOME/.writable"
for file in .bashrc .bash_logout .profile; do
  if [ -e "/etc/skel/$file" ] && [ ! -e "$HOME/$file" ]; then cp "/etc/skel/$file" "$HOME/$file"; fi
done
mkdir -p "$1"
