#!/usr/bin/env bash
# Packs the built workspace, what it needs of node_modules, and Node itself into one archive that runs on a Linux x86-64
# machine with nothing installed and no network (an air-gapped GPU host, say):
#   npm run bundle                        builds, then writes .bundle/nexus.tar.xz
#   bash scripts/bundle.sh [OUT_DIR]      packs what is built
# There:  mkdir -p /tmp/nexus && tar -xJf nexus.tar.xz -C /tmp/nexus && /tmp/nexus/run test
set -euo pipefail
limit_mib=45
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "${1:-.bundle}")
archive=$out/nexus.tar.xz

fail() { echo "bundle: $*" >&2; exit 1; }
for tool in tar xz strip; do command -v "$tool" > /dev/null || fail "$tool is needed (Debian: apt-get install tar xz-utils binutils)"; done
for addon in nexus nexus_faults; do # the second with fault points, for tests alone
  [ -f "kernels/build/Release/$addon.node" ] || fail "$addon.node is not built: npm run build"
done
compgen -G 'kernels/build/test/*_test' > /dev/null || fail 'the C++ tests are not built: npm run build'
[ -f apps/demo/dist/cli.js ] || fail 'the workspace is not built: npm run build'

mkdir -p "$out"
rm -f "$archive"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/bin" "$stage/lib" "$stage/workspace/kernels/build/Release" "$stage/workspace/kernels/build/test" "$stage/workspace/kernels/build/bench"

node=$(readlink -f "$(command -v node)")
install -m 755 "$node" "$stage/bin/node"
strip "$stage/bin/node" 2> /dev/null || true
# For a host without the C++ runtime, or with an older one: `run` falls back to these.
for library in libstdc++.so.6 libgcc_s.so.1 libatomic.so.1; do
  path=$(ldd "$node" | awk -v name="$library" '$1 == name { print $3 }')
  if [ -n "$path" ]; then cp -L "$path" "$stage/lib/"; fi
done

install -m 755 kernels/build/Release/{nexus,nexus_faults}.node "$stage/workspace/kernels/build/Release/"
for program in kernels/build/test/*_test kernels/build/test/*.so kernels/build/bench/{kernel,route,step}_bench; do
  if [ -x "$program" ]; then strip -o "$stage/workspace/$program" "$program"; fi
done
install -m 755 scripts/bundle-run.sh "$stage/run"

node scripts/bundle-files.mjs > "$stage/files"
tar -cf "$stage/nexus.tar" --no-recursion --transform 's,^,workspace/,S' -T "$stage/files"
tar -C "$stage" --append -f "$stage/nexus.tar" bin lib run workspace
# The device code is in the addon, its twin for fault tests and each test program: a dictionary that spans them all keeps
# one copy. Unpacking takes as much memory.
xz -T1 --lzma2=preset=6,dict=512MiB -c "$stage/nexus.tar" > "$stage/nexus.tar.xz"
size=$(stat -c %s "$stage/nexus.tar.xz")
mib=$(awk "BEGIN { printf \"%.1f\", $size / 1048576 }")
if [ "$size" -gt $((limit_mib * 1048576)) ]; then
  echo "bundle: the largest parts, uncompressed:" >&2
  tar -tvf "$stage/nexus.tar" | sort -k3 -n -r | sed -n 1,15p >&2 || true
  fail "$mib MiB is more than $limit_mib MiB: leave more behind (scripts/bundle-files.mjs)"
fi
mv "$stage/nexus.tar.xz" "$archive"
echo "$archive $mib MiB"
