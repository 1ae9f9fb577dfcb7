#!/bin/sh
# Takes nvcc's place where nothing that it compiles is run: each image is the first bytes of a fatbin, which the fake driver looks for.
set -eu
while [ "$1" != -o ]; do shift; done
printf '\120\355\125\272' >"$2"
