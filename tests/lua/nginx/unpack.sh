#!/bin/sh
# Unpacks Debian's nginx, its Lua module, and what they need, into a folder that does not exist yet, and installs nothing:
# the module's LuaJIT and the `luajit` that runs the other tests can't be installed both, and nginx would be started. Then KUBE_CODERS_NGINX_LUA=FOLDER.
set -eu
folder=${1:?usage: unpack.sh FOLDER}
[ ! -e "$folder" ] || { echo "unpack.sh: $folder is there already: remove it, or name another" >&2; exit 2; }
trap '[ "$?" = 0 ] || rm -rf "$folder"' EXIT
mkdir "$folder" "$folder/packages" "$folder/unpacked" "$folder/modules" "$folder/lib" "$folder/c"
cd "$folder/packages"
apt-get download -q nginx libnginx-mod-http-lua libnginx-mod-http-ndk libluajit2-5.1-2 lua-resty-core lua-resty-lrucache \
  libpcre3 lua-cjson
for package in *.deb; do dpkg -x "$package" ../unpacked; done
cd ../unpacked
cp usr/sbin/nginx ..
cp usr/lib/nginx/modules/*.so ../modules
find . -name 'libluajit*.so*' -o -name 'libpcre.so*' | while read -r library; do cp -P "$library" ../lib; done
cp usr/lib/*/lua/5.1/cjson.so ../c
cp -r usr/share/lua/5.1 ../lua
cd ..
rm -r packages unpacked
