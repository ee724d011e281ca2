#!/usr/bin/env bash
# The `run` of a bundle: runs a command in the bundled workspace, with its own Node. Nothing else is needed.
#   run test [vitest arguments]    C++ tests, then vitest, then one closing line; lists what was left out
#   run sanitize [TOOL] …          the C++ tests under compute-sanitizer (`run sanitize --help`)
#   run demo …                     nexus-demo, e.g. `run demo --device cuda`, `run demo doctor`
#   run bench …                    the benchmarks
#   run COMMAND …                  any other: `run vitest run packages/core`, `run node x.mjs`,
#                                  `run kernels/build/test/native_test route`, `run python3 apps/bench/peers/bench_peers.py`
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH="$here/bin:$here/workspace/node_modules/.bin:$PATH"
# No registry, no compiler: tests that need one are left out by name (tests/tags.ts).
export NEXUS_BUNDLE=1
if ! "$here/bin/node" --version > /dev/null 2>&1; then
  export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
cd "$here/workspace"
case ${1:-} in
  '' | help | --help) sed -n 's/^# \{0,1\}//p' "$here/run" | sed -n '2,8p'; exit 0 ;;
  test) shift; exec node scripts/test.mjs "$@" ;;
  sanitize) shift; exec node scripts/sanitize.mjs "$@" ;;
  demo | bench) exec node scripts/app.mjs "$@" ;;
  *) exec "$@" ;;
esac
