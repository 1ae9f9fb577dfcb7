#!/bin/sh
# Puts the libraries of `make lib`, the headers and what pkg-config and CMake read under $PREFIX. `make install` runs it and says
# which VERSION; LIBDIR and INCLUDEDIR may lie elsewhere, DESTDIR goes before all of them, as packagers expect.
#
# What is installed finds its parts by where it lies itself, so the tree may be moved.
set -eu
cd "$(dirname "$0")/.."

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

# put MODE FILE FOLDER [NAME]
put() {
    install -d "$root$3"
    install -m "$1" "$2" "$root$3/${4:-$(basename "$2")}"
}

# fill TEMPLATE FOLDER: @...@ is replaced, paths are written relative to the folder.
fill() {
    filled=$(mktemp)
    sed -e "s|@VERSION@|$VERSION|g" -e "s|@ABI@|$abi|g" \
        -e "s|@LIBDIR@|$(realpath -ms --relative-to="$2" "$libdir")|g" \
        -e "s|@INCLUDEDIR@|$(realpath -ms --relative-to="$2" "$includedir")|g" "$1" >"$filled"
    put 644 "$filled" "$2" "$(basename "$1" .in)"
    rm "$filled"
}

put 644 include/lava.h "$includedir"
put 644 include/lava.hpp "$includedir"
put 644 $built/liblava.a "$libdir"
put 755 $built/liblava.so "$libdir" "liblava.so.$VERSION"
# A program is linked by the last name and runs by the one in the middle, which changes with the ABI only.
ln -sf "liblava.so.$VERSION" "$root$libdir/liblava.so.$abi"
ln -sf "liblava.so.$abi" "$root$libdir/liblava.so"
fill packaging/lava.pc.in "$libdir/pkgconfig"
fill packaging/lava-config.cmake.in "$libdir/cmake/lava"
fill packaging/lava-config-version.cmake.in "$libdir/cmake/lava"
for text in LICENSE-MIT LICENSE-APACHE; do
    put 644 $text "$docdir"
done
echo "lava $VERSION is in $root$prefix"
