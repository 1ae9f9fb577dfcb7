#!/bin/sh
# Brings everything the llama.cpp example needs under target/llama.cpp/, and patches the source:
#
#   src/      llama.cpp with lava.patch applied
#   python/   what gguf.py imports
#   cmake     a link to CMake: an installed one, else Debian's, else PyPI's
#
# The source is the one inside the crate llama-cpp-sys-2, which cargo downloads and whose sum is checked here. With
# LLAMA_CPP_DIR it is a copy of that checkout instead; the checkout itself is not touched.
#
# Run again, it does only what is missing. Of src/ only the files that differ are written, so that a build stays incremental.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
home=$(cd "$here/../.." && pwd)/target/llama.cpp
version=0.1.161
sum=e9bea77fde41bbc15a278891cd5edd2ba07c5260d162614b41080ba1f100b39b
mkdir -p "$home"

say() { echo "llama.cpp: $*" >&2; }
fail() { say "$*"; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# debian PACKAGE: installs it, if this is Debian or its like and we may.
debian() {
    command -v apt-get >/dev/null || return 1
    say "installing $1"
    as_root apt-get install -qq -y --no-install-recommends "$1" >&2 ||
        { as_root apt-get update -qq >&2 && as_root apt-get install -qq -y --no-install-recommends "$1" >&2; }
}

# pip FOLDER ARGUMENT...: installs from PyPI into FOLDER, which appears only when complete.
pip() {
    folder=$1
    shift
    python3 -m pip --version >/dev/null 2>&1 || debian python3-pip || return 1
    say "python3 -m pip install $* (into ${folder#"$home/"})"
    rm -rf "$folder.part"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$folder.part" "$@" >&2 || return 1
    mv "$folder.part" "$folder"
}

# --- what is missing, told before anything is brought ---

missing=
lacks() { missing="$missing
  - $1"; }
command -v patch >/dev/null || lacks "patch, from Debian, installed for the whole system"
command -v cmake >/dev/null || [ -x "$home/cmake" ] || lacks "CMake, from Debian for the whole system; where that may not be, from PyPI into target/llama.cpp"
[ "$(cat "$home/python/.requirements" 2>/dev/null)" = "$(cat "$here/requirements.txt")" ] || {
    python3 -m pip --version >/dev/null 2>&1 || lacks "pip, from Debian, installed for the whole system"
    lacks "$(echo $(cat "$here/requirements.txt")) and what they need, from PyPI into target/llama.cpp/python"
}
[ -n "${LLAMA_CPP_DIR:-}" ] || [ -e "$home/pinned-$version/.complete" ] ||
    lacks "llama-cpp-sys-2 $version, 6 MB, and the crates it names, from crates.io into cargo's cache and target/llama.cpp"
[ -z "$missing" ] || say "will bring what is missing:$missing"

# --- tools ---

command -v patch >/dev/null || debian patch || fail "patch is missing; install it"

cmake=$(command -v cmake || true)
if [ -z "$cmake" ] && [ ! -x "$home/cmake" ]; then
    if debian cmake; then
        cmake=$(command -v cmake)
    elif pip "$home/cmake-wheel" cmake==3.31.6; then
        cmake=$home/cmake-wheel/cmake/data/bin/cmake
    else
        fail "CMake is missing; install version 3.14 or later"
    fi
fi
[ -z "$cmake" ] || ln -sfn "$cmake" "$home/cmake"

wanted=$(cat "$here/requirements.txt")
if [ "$(cat "$home/python/.requirements" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$home/python"
    pip "$home/python" -r "$here/requirements.txt" || fail "pip could not install $(echo $wanted); is there a network?"
    echo "$wanted" >"$home/python/.requirements"
fi

# --- source ---

# The crate's own copy, unpacked from the file whose sum was checked. Prints its folder.
pinned() {
    [ -e "$home/pinned-$version/.complete" ] || {
        say "fetching llama-cpp-sys-2 $version through cargo (6 MB, and what it depends on)"
        mkdir -p "$home/crate/src"
        printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[workspace]\n[dependencies]\nllama-cpp-sys-2 = "=%s"\n' "$version" \
            >"$home/crate/Cargo.toml"
        : >"$home/crate/src/lib.rs"
        ${CARGO:-cargo} fetch --quiet --manifest-path "$home/crate/Cargo.toml" || fail "cargo could not fetch it; is there a network?"
        crate=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/cache" -name "llama-cpp-sys-2-$version.crate" | head -n 1)
        [ -n "$crate" ] || fail "cargo fetched llama-cpp-sys-2 $version, but its .crate file is not in its cache"
        echo "$sum  $crate" | sha256sum --check --quiet >&2 || fail "$crate is not the file that lava.patch was made for"
        rm -rf "$home/pinned-$version"
        mkdir "$home/pinned-$version"
        tar -xzf "$crate" -C "$home/pinned-$version" --strip-components=2 "llama-cpp-sys-2-$version/llama.cpp"
        touch "$home/pinned-$version/.complete"
    }
    echo "$home/pinned-$version"
}

if [ -n "${LLAMA_CPP_DIR:-}" ]; then
    [ -e "$LLAMA_CPP_DIR/src/llama-kv-cache.cpp" ] ||
        fail "LLAMA_CPP_DIR=$LLAMA_CPP_DIR is not a llama.cpp checkout: it has no src/llama-kv-cache.cpp"
    origin=$LLAMA_CPP_DIR
    say "patching a copy of $LLAMA_CPP_DIR, which itself stays as it is"
else
    origin=$(pinned)
fi

# A fresh copy is patched every time, so a patch that has stopped applying is found now and not by the next one who clones.
next=$home/next
rm -rf "$next"
mkdir "$next"
for part in CMakeLists.txt LICENSE licenses cmake common ggml include src vendor; do
    [ ! -e "$origin/$part" ] || cp -R "$origin/$part" "$next/"
done
patch --directory="$next" --strip=1 --fuzz=0 --batch --silent --no-backup-if-mismatch <"$here/lava.patch" >&2 ||
    fail "lava.patch does not apply to $origin. It is made for the llama.cpp in llama-cpp-sys-2 $version, the version
known to work; on another one, apply examples-c/llama.cpp/lava.patch by hand: the hooks are few and each is short"

mkdir -p "$home/src"
(cd "$next" && find . -type f) | while read -r file; do
    cmp -s "$next/$file" "$home/src/$file" || { mkdir -p "$home/src/$(dirname "$file")" && cp "$next/$file" "$home/src/$file"; }
done
(cd "$home/src" && find . -type f) | while read -r file; do
    [ -e "$next/$file" ] || rm "$home/src/$file"
done
rm -rf "$next"
say "patched source in target/llama.cpp/src"
