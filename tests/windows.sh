#!/bin/sh
# The tests for x86-64 Windows under wine, on an x86-64 Debian (12 or later), with mingw-w64: the no_std library with
# the C and C++ programs, whose output must be that of the same programs here; the DLL; the crate's tests; the
# conformance tests. Installs what it needs: mingw-w64 and wine from apt (1.1 GB installed), as root, and the standard
# library of the target from rustup. Where rustup has none, nightly Rust with rust-src builds `core` for the no_std
# library, and the rest is left out; the last lines say so.
#
# Not tested here: MSVC's compiler and C library, and Windows itself.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
windows=$root/target/windows
target=x86_64-pc-windows-gnu
gcc=x86_64-w64-mingw32-gcc-posix
gxx=x86_64-w64-mingw32-g++-posix
headers=/usr/x86_64-w64-mingw32/include
cargo=${CARGO:-cargo}
rustc=${RUSTC:-rustc}
warnings="-O2 -Wall -Wextra -Wpedantic -Werror"
cd "$root"
mkdir -p "$windows"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

if ! command -v $gcc >/dev/null || ! command -v $gxx >/dev/null || ! command -v wine >/dev/null; then
    echo "installing mingw-w64 and wine"
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        gcc-mingw-w64-x86-64-posix g++-mingw-w64-x86-64-posix wine wine64 >/dev/null
fi

has_std() {
    [ -n "$(find "$("$rustc" --print target-libdir --target $target)" -name 'libstd-*.rlib' 2>/dev/null)" ]
}
has_std || rustup target add $target || true

export CARGO_TARGET_DIR="$windows/cargo"
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=$gcc
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=wine
export CC_x86_64_pc_windows_gnu=$gcc
export BINDGEN_EXTRA_CLANG_ARGS_x86_64_pc_windows_gnu="-isystem $headers"
export WINEPREFIX="$windows/wine"
export WINEDEBUG=-all
built=$CARGO_TARGET_DIR/$target

[ -e "$WINEPREFIX/system.reg" ] || wine wineboot -i >/dev/null 2>&1 || { echo "wine does not start" >&2; exit 1; }

# library CARGO'S OPTIONS...: the no_std library.
library() {
    "$cargo" "$@" --quiet --lib --profile nostd --crate-type staticlib \
        --no-default-features --features ffi-panic-handler
}
echo "building the no_std library, for here and for Windows"
library rustc
if has_std; then
    library rustc --target $target
else
    library +nightly rustc --target $target -Zbuild-std=core || {
        echo "Rust has no library for $target. Install one: rustup target add $target, or, for a part of the tests:" >&2
        echo "rustup component add --toolchain nightly rust-src" >&2
        exit 1
    }
fi

# What a program printed, without times and line ends.
printed() {
    sed -E -e 's/\r$//' -e 's/ *[0-9]+\.[0-9]+ (\+ [0-9]+\.[0-9]+ )?ms/ (time)/g' "$1"
}

# check SOURCE: the same program for here and for Windows, and what the two print.
check() {
    name=$(basename "$(dirname "$1")")-$(basename "$1")
    case $1 in
    *.cpp) here="${CXX:-c++} -std=c++17" there="$gxx -std=c++17" ;;
    *) here="${CC:-cc} -std=c11" there="$gcc -std=c11" ;;
    esac
    # -static: the programs need no DLL of mingw-w64's. pthread.h comes with it, though not with MSVC.
    # shellcheck disable=SC2086
    $here $warnings -I include "$1" "$CARGO_TARGET_DIR/nostd/liblava.a" -lm -lpthread -o "$windows/$name"
    # shellcheck disable=SC2086
    $there $warnings -static -I include "$1" "$built/nostd/liblava.a" -o "$windows/$name.exe"
    "$windows/$name" >"$windows/$name.here" || { echo "$1 fails here"; exit 1; }
    wine "$windows/$name.exe" >"$windows/$name.there" || {
        cat "$windows/$name.there"
        echo "$1 fails under wine"
        exit 1
    }
    printed "$windows/$name.here" >"$windows/here.txt"
    printed "$windows/$name.there" >"$windows/there.txt"
    [ -s "$windows/here.txt" ] || { echo "$1 prints nothing"; exit 1; }
    diff "$windows/here.txt" "$windows/there.txt" || { echo "$1: < here, > under wine"; exit 1; }
    echo "$1: the same output"
    n=$((n + 1))
}

# Of ffi-tests/c: planted.c makes mistakes for a sanitizer to find, and freestanding.c's entry is Linux's.
n=0
for source in examples-c/*.c examples-c/quickstart.cpp ffi-tests/c/every_function.c ffi-tests/c/shared_inputs.c \
    ffi-tests/consumer/main.c ffi-tests/consumer/main.cpp; do
    check "$source"
done

if ! has_std; then
    echo "$n programs print on Windows what they print here"
    echo "not run, without a standard library for $target: the DLL, the crate's tests, the conformance tests"
    exit 0
fi

# The standard library takes the seeds of its hash maps from a DLL that wine has from version 9 on.
if [ ! -e "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" ]; then
    {
        echo '#include <windows.h>'
        echo '#include <ntsecapi.h>'
        echo '__declspec(dllexport) int ProcessPrng(unsigned char *to, size_t n) {'
        echo '    return RtlGenRandom(to, (unsigned long) n);'
        echo '}'
    } >"$windows/prng.c"
    $gcc -O2 -shared "$windows/prng.c" -o "$windows/prng.dll" -ladvapi32
    cp "$windows/prng.dll" "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll"
fi

echo "building the DLL"
"$cargo" rustc --quiet --target $target --lib --profile capi --crate-type cdylib
x86_64-w64-mingw32-objdump -p "$built/capi/lava.dll" |
    awk '/Name Pointer\]/ { on = 1 } on && /^\t\[ *[0-9]+\]/ { print $NF }' | sort >"$windows/exported.txt"
for header in include/lava*.h; do
    case $header in *cuda*) continue ;; esac  # another feature's
    sed -n '/^static/!s/^[a-z][^(]*[ *]\(lava_[a-z0-9_]*\)(.*/\1/p' "$header"
done | sort >"$windows/declared.txt"
diff "$windows/exported.txt" "$windows/declared.txt" || { echo "lava.dll: < exported, > declared"; exit 1; }
$gcc -std=c11 -I include ffi-tests/consumer/main.c "$built/capi/liblava.dll.a" -o "$built/capi/dll.exe"
wine "$built/capi/dll.exe" >"$windows/dll.txt"
printed "$windows/dll.txt" | diff "$windows/consumer-main.c.here" - || { echo "the DLL: < here, > under wine"; exit 1; }
echo "lava.dll exports the $(wc -l <"$windows/declared.txt") functions of the headers, and a program runs with it"

"$cargo" test --target $target --package lava --features rayon

# The conformance tests, without those that build for the machine they run on.
set --
for file in $(grep -L ffi_tests::library ffi-tests/tests/*.rs); do
    set -- "$@" --test "$(basename "$file" .rs)"
done
"$cargo" test --target $target --package ffi-tests "$@"
echo "all tests passed on Windows, $n programs among them"
