#!/bin/bash
# Gets what ixnet needs on a Debian 12 machine: Debian packages, and a virtual
# environment in the tree. Says what it does; does nothing when all is there; when
# something can't be had, says what to do about it.
set -eu
cd "$(dirname "$0")/.."
root=$PWD

# What each is for: compilers and linker (gcc, make, libc6-dev), the BPF program
# (clang, linux-libc-dev), loading it and AF_XDP sockets (libbpf-dev, libxdp-dev), the
# Python side (python3-dev, python3-venv), what the memcached server is compared with and tested by
# (memcached, libmemcached-tools).
packages="make gcc libc6-dev linux-libc-dev clang libbpf-dev libxdp-dev python3 python3-dev python3-venv"
packages="$packages memcached libmemcached-tools"
system_python=/usr/bin/python3

say() { echo "setup: $*"; }
die() {
    echo "setup: FAILED: $1" >&2
    shift
    for cure in "$@"; do echo "setup:   cure: $cure" >&2; done
    exit 1
}

missing_packages() {
    for p in $packages; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
    done
}

# Debian starts the services that it installs; memcached's is not wanted, now or at the next boot.
hold_services() {
    policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0 # whoever put it there decides
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
}

release_services() {
    case " $missing " in *" memcached "*)
        ! command -v systemctl >/dev/null || systemctl --quiet disable memcached 2>/dev/null || true ;;
    esac
    [ -z "$(trap -p EXIT)" ] || { rm -f "$policy"; trap - EXIT; }
}

install_packages() {
    missing=$(missing_packages | xargs)
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || die "these Debian packages are missing and only root can install them: $missing" \
        "run as root: apt-get update && apt-get install $missing"
    say "installing Debian packages: $missing"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    # The lock may be held by an unattended upgrade: wait for it rather than fail.
    apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 ||
        say "apt-get update failed; going on with the package lists at hand"
    hold_services
    if ! apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: $missing" \
            "check that this machine reaches a Debian mirror (apt-get update), then run make setup again" \
            "or install these packages by hand"
    fi
    rm -f "$log"
    release_services
}

# On another distribution there is no dpkg to ask, so ask for the things themselves.
check_tools() {
    for tool in make gcc clang ld objcopy nm flock "$system_python"; do
        command -v "$tool" >/dev/null || die "$tool is not installed" "install: $packages (or what they are called here)"
    done
    for header in bpf/libbpf.h xdp/xsk.h linux/if_xdp.h; do
        [ -e "/usr/include/$header" ] || die "the header $header is not installed" \
            "install: $packages (or what they are called here)"
    done
}

# The stamp changes with everything that decides what the environment holds: this
# script, the requirements, the interpreter, and the place (its scripts hold absolute paths).
venv_stamp() {
    { cat .ci/setup.sh pyproject.toml; "$system_python" -VV; echo "$root"; } | sha256sum | cut -c1-32
}

make_venv() {
    stamp=$(venv_stamp)
    [ "$(cat .venv/ixnet-setup 2>/dev/null)" = "$stamp" ] && [ -x .venv/bin/python ] && return 0
    "$system_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$system_python is older than Python 3.11" "use Debian 12 or later"
    # --clear would empty whatever a link leads to.
    [ ! -L .venv ] || die ".venv is a symbolic link" "rm .venv, and make again"
    say "making the virtual environment .venv"
    rm -f .venv/ixnet-setup
    "$system_python" -m venv --clear .venv || die "$system_python -m venv failed" "apt-get install python3-venv"
    requirements=$("$system_python" - <<'PY'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
PY
)
    say "installing Python packages:" $requirements
    echo "$requirements" >.venv/requirements.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r .venv/requirements.txt ||
        die "pip could not install the Python packages" \
            "check that this machine reaches a Python package index (PIP_INDEX_URL, proxy), then run make setup again"
    # The tree itself is importable from the environment, and has its command there.
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$root" >"$site/ixnet-tree.pth"
    cat >.venv/bin/ixnet <<SH
#!$root/.venv/bin/python
import sys
from ixnet.cli import main
sys.exit(main())
SH
    chmod +x .venv/bin/ixnet
    echo "$stamp" >.venv/ixnet-setup
    say "done: .venv holds $(.venv/bin/python -V), the command is .venv/bin/ixnet"
}

if command -v dpkg-query >/dev/null; then install_packages; fi
check_tools
# Two makes at once must not build the environment twice.
exec 9>.ci/.setup.lock
flock 9
make_venv
