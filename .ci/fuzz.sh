#!/bin/bash
# Gets what `make fuzz` needs beyond .ci/setup.sh: libFuzzer and the sanitizers of the clang
# that is installed (3 MB to fetch). Does nothing when they are there.
set -eu
runtime=$(clang -print-runtime-dir 2>/dev/null || true)
ls "$runtime"/libclang_rt.fuzzer*.a >/dev/null 2>&1 && exit 0
ls "$(clang -print-resource-dir)"/lib/linux/libclang_rt.fuzzer*.a >/dev/null 2>&1 && exit 0
package=libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "setup: FAILED: libFuzzer is not installed" >&2
    echo "setup:   cure: run as root: apt-get update && apt-get install $package" >&2
    exit 1
fi
echo "setup: installing Debian package: $package"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 || true
apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$package" >"$log" 2>&1 || {
    tail -n 15 "$log" >&2
    echo "setup: FAILED: apt-get could not install $package" >&2
    echo "setup:   cure: check that this machine reaches a Debian mirror (apt-get update)" >&2
    exit 1
}
