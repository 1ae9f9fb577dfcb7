#!/bin/sh
# Installs the named programs, if they are missing, from Debian's packages of the same names: programs.sh pkg-config cmake
# or of other names: programs.sh mpicc=libopenmpi-dev. WITH names packages that go with them and are not programs.
set -eu

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

missing=
for program in "$@"; do
    command -v "${program%%=*}" >/dev/null || missing="$missing ${program#*=}"
done
[ -n "$missing" ] || exit 0
missing="$missing ${WITH:-}"
echo "installing$missing" >&2
as_root apt-get -qq update >&2 || true  # the existing lists may be enough
# shellcheck disable=SC2086
if ! as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $missing >/dev/null; then
    echo "missing:$missing, and apt-get could not install them (it needs root and a network). Install them, then run this again." >&2
    exit 1
fi
