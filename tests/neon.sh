#!/bin/sh
# The tests for aarch64 under user-mode QEMU, on an x86-64 Debian (12 or later): the NEON kernels against the scalar ones, the
# conformance tests through the C ABI, the C programs. Installs what it needs: a cross compiler and QEMU from the machine's own apt
# sources, as root; the standard library of the target from rustup or, where that has none, with Debian's Rust under target/ (100 MB,
# and LLVM, installed as well).
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
neon=$root/target/neon
rust=$neon/rust
target=aarch64-unknown-linux-gnu
libc=/usr/aarch64-linux-gnu
gcc=aarch64-linux-gnu-gcc
qemu="qemu-aarch64 -L $libc"
cargo=${CARGO:-cargo}
cd "$root"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install() {
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

has_std() {
    folder=$("$1" --print target-libdir --target $target) && [ -n "$(find "$folder" -name 'libstd-*.rlib' 2>/dev/null)" ]
}

# apt with lists of both architectures, its state under target/: the machine's own is left alone.
apt() {
    command=$1
    shift
    "$command" -qq -o Dir::State::lists="$neon/apt/lists" -o Dir::Cache="$neon/apt" -o APT::Architectures=amd64,arm64 \
        -o APT::Sandbox::User=root "$@"
}

# The package that $1 depends on and that is named like $2.
dependency() {
    apt apt-cache depends "$1" | sed -n "s/^ *Depends: \($2[0-9.]*\)\$/\1/p" | head -n 1
}

if ! command -v $gcc >/dev/null || ! command -v qemu-aarch64 >/dev/null || [ ! -e $libc/include/stdint.h ]; then
    echo "installing a cross compiler and QEMU"
    install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
fi

# Debian updates rustc-web within a release, for browsers; its standard library fits only the compiler of the same version.
RUSTC=${RUSTC:-rustc}
has_std "$RUSTC" || rustup target add $target || true
if ! has_std "$RUSTC"; then
    RUSTC=$neon/rustc
    if [ ! -x "$RUSTC" ]; then
        echo "fetching Rust with the standard library of aarch64, and LLVM"
        rm -rf "$rust" "$neon/apt"
        mkdir -p "$rust" "$neon/apt/lists/partial" "$neon/apt/archives/partial"
        apt apt-get update
        std=$(dependency libstd-rust-web-dev libstd-rust-web-)
        llvm=$(dependency "$std" libllvm)
        [ -n "$llvm" ] || {
            echo "apt has no rustc-web of both architectures here; try: rustup target add $target" >&2
            exit 1
        }
        install "$llvm"
        (cd "$neon/apt" && apt apt-get download rustc-web "$std" libstd-rust-web-dev:amd64 libstd-rust-web-dev:arm64)
        for package in "$neon"/apt/*.deb; do
            dpkg -x "$package" "$rust"
        done
        rm -rf "$neon/apt"
        {
            echo "#!/bin/sh"
            echo "export LD_LIBRARY_PATH='$rust/usr/lib/x86_64-linux-gnu'"
            echo "exec '$rust/usr/bin/rustc' --sysroot '$rust/usr' \"\$@\""
        } >"$RUSTC.new"
        chmod +x "$RUSTC.new"
        mv "$RUSTC.new" "$RUSTC"
    fi
    has_std "$RUSTC" || { echo "$RUSTC does not run: remove $neon and try again" >&2; exit 1; }
fi
export RUSTC
export CARGO_TARGET_DIR="$neon/cargo"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$qemu"
export BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu="-isystem $libc/include"
echo "aarch64 by $("$RUSTC" --version)"

"$cargo" test --target $target --package lava-kv --features rayon --lib --test scoring --test decisions --test ranks

# The conformance tests, without those that build for the machine they run on.
set --
for file in $(grep -L ffi_tests::library ffi-tests/tests/*.rs); do
    set -- "$@" --test "$(basename "$file" .rs)"
done
"$cargo" test --target $target --package ffi-tests "$@"

echo "building liblava for C programs"
"$cargo" rustc --quiet --target $target --lib --profile capi --crate-type staticlib
for source in examples-c/*.c; do
    program=$neon/$(basename "$source" .c)
    $gcc -std=c11 -O2 -Wall -Wextra -Wpedantic -Werror -I include "$source" "$CARGO_TARGET_DIR/$target/capi/liblava.a" \
        -lm -lpthread -ldl -o "$program"
    $qemu "$program" >"$program.txt" || { cat "$program.txt"; echo "$source fails"; exit 1; }
    echo "$source runs"
done
grep -q "neon kernels" "$neon/quickstart.txt" || { head -n 1 "$neon/quickstart.txt"; echo "NEON was not chosen"; exit 1; }
echo "all tests passed on aarch64"
