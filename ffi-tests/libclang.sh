#!/bin/sh
# Prints the folder of a libclang that bindgen can load, and installs one if there is none.
#
# 1. $LIBCLANG_PATH. 2. One that is installed. 3. One installed under target/, earlier or now, by pip. 4. apt, as root.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$root/target/libclang

# libclang-cpp is another library.
installed() {
    find /usr/lib /usr/lib64 /usr/local/lib -maxdepth 4 \( -name 'libclang.so*' -o -name 'libclang-[0-9]*.so*' \) 2>/dev/null |
        sort | tail -n 1
}

print_folder() {
    [ -n "$1" ] && dirname "$1" && exit 0
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

if [ -n "${LIBCLANG_PATH:-}" ]; then
    echo "$LIBCLANG_PATH"
    exit 0
fi
print_folder "$(installed)" || true
if [ ! -e "$wheel/clang/native/libclang.so" ]; then
    python3 -m pip install --quiet --target "$wheel" libclang==18.1.1 >&2 || true
fi
if [ -e "$wheel/clang/native/libclang.so" ]; then
    echo "$wheel/clang/native"
    exit 0
fi
for package in libclang1-19 libclang1-14; do
    as_root apt-get install -y --no-install-recommends "$package" >&2 || continue
    print_folder "$(installed)" || true
done
echo "ffi-tests needs libclang to read include/lava.h. Install libclang (Debian: libclang1-19, Fedora: clang-libs," >&2
echo "Python: pip install libclang==18.1.1) and, where it is not found, set LIBCLANG_PATH to its folder." >&2
exit 1
