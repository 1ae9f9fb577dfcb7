#!/bin/sh
# Puts the libraries of `make lib`, the headers and what pkg-config and CMake read under $PREFIX: install.sh install. Removes the same
# files: install.sh uninstall. `make install` and `make uninstall` run it and set VERSION; LIBDIR and INCLUDEDIR may be elsewhere,
# DESTDIR goes before all of them, as packagers expect. FEATURES says what the libraries were built with.
#
# The installed files find each other by their own place, so the tree may be moved.
#
# For Linux and macOS. On macOS a program finds the library by its own rpath: -Wl,-rpath,$LIBDIR. For Windows there is no such
# script; `cargo rustc --lib --profile capi --crate-type cdylib` makes lava.dll.
set -eu
cd "$(dirname "$0")/../.."

absolute() {
    case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
    esac
}

prefix=$(absolute "${PREFIX:-/usr/local}")
libdir=$(absolute "${LIBDIR:-$prefix/lib}")
includedir=$(absolute "${INCLUDEDIR:-$prefix/include}")
docdir=$prefix/share/doc/lava
root=${DESTDIR:-}
abi=${VERSION%%.*}
built=target/capi/capi
task=$1

# shared [VERSION]: the shared library's name. private: what Rust's standard library in liblava.a asks for (rustc --print
# native-static-libs), except what cc adds by itself.
case $(uname -s) in
Linux)
    shared() { echo "liblava.so${1:+.$1}"; }
    private="-lutil -lrt -lpthread -lm -ldl"
    ;;
Darwin)
    shared() { echo "liblava${1:+.$1}.dylib"; }
    private="-lm"
    ;;
*)
    echo "make $task is for Linux and macOS" >&2
    exit 1
    ;;
esac

# Another version's files have the same names.
pc=$root$libdir/pkgconfig/lava.pc
if [ "$task" = uninstall ] && [ -e "$pc" ] && ! grep -qx "Version: $VERSION" "$pc"; then
    echo "what is in $root$prefix is not lava $VERSION but $(sed -n 's/^Version: //p' "$pc"): nothing was removed." \
        "Uninstall it with its own Makefile." >&2
    exit 1
fi

# put MODE FILE FOLDER [NAME]
put() {
    to=$root$3/${4:-$(basename "$2")}
    if [ "$task" = install ]; then
        install -d "$root$3"
        install -m "$1" "$2" "$to"
    else
        rm -f "$to"
    fi
}

# link FILE NAME, both in the folder of the libraries.
link() {
    if [ "$task" = install ]; then ln -sf "$1" "$root$libdir/$2"; else rm -f "$root$libdir/$2"; fi
}

# relative PATH FOLDER: the path as seen from the folder, by their names alone. Not realpath, whose options are GNU's.
relative() {
    python3 -c 'import os, sys; print(os.path.relpath(sys.argv[1], sys.argv[2]))' "$1" "$2"
}

# fill TEMPLATE FOLDER: @...@ is replaced, paths are written relative to the folder.
fill() {
    filled=$(mktemp)
    sed -e "s|@VERSION@|$VERSION|g" -e "s|@ABI@|$abi|g" -e "s|@SHARED@|$(shared "$VERSION")|g" \
        -e "s|@PRIVATE@|$private|g" -e "s|@PRIVATE_LIST@|$(echo "$private" | sed -e 's/-l//g' -e 's/ /;/g')|g" \
        -e "s|@LIBDIR@|$(relative "$libdir" "$2")|g" -e "s|@INCLUDEDIR@|$(relative "$includedir" "$2")|g" "$1" >"$filled"
    put 644 "$filled" "$2" "$(basename "$1" .in)"
    rm "$filled"
}

put 644 include/lava.h "$includedir"
put 644 include/lava_methods.h "$includedir"
put 644 include/lava_ranks.h "$includedir"
put 644 include/lava.hpp "$includedir"
# Their functions exist with this feature only.
case "$task ${FEATURES:-}" in
uninstall* | *cuda*)
    put 644 include/lava_cuda.h "$includedir"
    put 644 include/lava_cuda.hpp "$includedir"
    ;;
esac
put 644 $built/liblava.a "$libdir"
put 755 "$built/$(shared)" "$libdir" "$(shared "$VERSION")"
# A program is linked by the last name and runs by the one in the middle, which changes with the ABI only.
link "$(shared "$VERSION")" "$(shared "$abi")"
link "$(shared "$abi")" "$(shared)"
fill include/install/lava.pc.in "$libdir/pkgconfig"
fill include/install/lava-config.cmake.in "$libdir/cmake/lava"
fill include/install/lava-config-version.cmake.in "$libdir/cmake/lava"
for text in LICENSE-MIT LICENSE-APACHE; do
    put 644 $text "$docdir"
done
if [ "$task" = install ]; then
    echo "lava $VERSION is in $root$prefix"
else
    # Folders that are lava's own. The others may be others' too.
    for folder in "$root$libdir/cmake/lava" "$root$docdir"; do
        rmdir "$folder" 2>/dev/null || true  # it does not exist, or holds other files
    done
    echo "lava $VERSION is gone from $root$prefix"
fi
