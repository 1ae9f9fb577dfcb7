#!/usr/bin/env bash
# The C examples and the programs of ffi-tests/c under gcc's AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, under
# clang's MemorySanitizer and checks of conversions, and under valgrind; the Rust tests under AddressSanitizer. Prints a table; stops
# with an error if anything was found.
#
# With a nightly compiler the library itself is instrumented, else only the C side is (valgrind sees both). valgrind hides AVX-512,
# so it runs the AVX2 kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
out=target/sanitize
libs=(-lm -lpthread -ldl)
mkdir -p "$out/bin"
# Says what is left out, also to .ci/parts.
not_run() { printf '%-16s %s\n' sanitize "$*" | tee -a "${LAVA_NOT_RUN:-/dev/null}" >&2; }

WITH=libc6-dbg ffi-tests/programs.sh valgrind
with_clang=
WITH=libclang-rt-19-dev ffi-tests/programs.sh clang-19 || true
if echo 'int main(void) { return 0; }' | clang-19 -x c -fsanitize=memory - -o "$out/bin/program" 2>/dev/null; then
    with_clang=1
else
    not_run "no clang-19 with libclang-rt-19-dev: only valgrind looks at conversions and at what is read before it is written"
fi

# Asked once: a compiler that is gone later is a failure.
with_nightly=
if cargo +nightly --version >/dev/null 2>&1; then with_nightly=1; fi
nightly() { [ -n "$with_nightly" ]; }
# With the source of Rust's own libraries.
with_source() { nightly && rustup component add --toolchain nightly rust-src >/dev/null 2>&1; }

# library NAME RUSTFLAGS OPTIONS...: liblava.a with the library's own code instrumented, or as users have it.
library() {
    if nightly; then
        RUSTFLAGS="$2" cargo +nightly rustc --quiet --lib --release --crate-type staticlib --target "$host" \
            --target-dir "$out/$1" "${@:3}"
        echo "$out/$1/$host/release/liblava.a"
    else
        not_run "no nightly compiler: the $1 sanitizer looks at the C side only"
        echo target/capi/capi/liblava.a
    fi
}

n=0 failed=0
# check TOOL WHAT COMMAND...: one line of the table.
check() {
    local tool=$1 what=$2 start=$SECONDS log=$out/log
    shift 2
    n=$((n + 1))
    printf '%-28s %-28s ' "$tool" "$what"
    if "$@" >"$log" 2>&1; then
        printf 'ok %4d s\n' $((SECONDS - start))
    else
        printf 'FOUND\n'
        head -60 "$log"
        failed=$((failed + 1))
    fi
}

# build SOURCE PROGRAM FLAGS... with everything to be linked among the flags. By gcc, or what CC and CXX say.
build() {
    local source=$1 program=$2
    shift 2
    case $source in
        *.cpp) set -- "${CXX:-g++}" -std=c++17 "$@" ;;
        *) set -- "${CC:-gcc}" -std=c11 "$@" ;;
    esac
    "$1" "$2" -O1 -g -Wall -Wextra -I include "$source" -o "$program" "${@:3}" "${libs[@]}"
}
clang() { CC=clang-19 CXX=clang++-19 build "$@"; }

programs=(examples-c/*.c examples-c/quickstart.cpp ffi-tests/c/every_function.c ffi-tests/c/shared_inputs.c)
threaded=(examples-c/threads.c ffi-tests/c/shared_inputs.c)

plain=target/capi/capi/liblava.a
address=$(library address "-Zsanitizer=address")
# The precompiled standard library is not instrumented; nothing of it runs on two threads at a time here.
thread=$(library thread "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer")
memory=
if [ -n "$with_clang" ] && with_source; then
    # All code must report what it writes: no std, and core is built with it.
    memory=$(library memory "-Zsanitizer=memory -Zsanitizer-memory-track-origins -Cpanic=abort" \
        -Zbuild-std=core --no-default-features --features ffi-panic-handler)
elif [ -n "$with_clang" ]; then
    not_run "no nightly compiler with rust-src: nothing looks at what AVX-512 kernels read before it is written"
fi

export UBSAN_OPTIONS=print_stacktrace=1
for source in "${programs[@]}"; do
    build "$source" "$out/bin/program" -fsanitize=address,undefined -fno-sanitize-recover=all "$address"
    check "address, undefined" "$(basename "$source")" "$out/bin/program"
done
for source in "${threaded[@]}"; do
    build "$source" "$out/bin/program" -fsanitize=thread ffi-tests/c/tsan_memory.c "$thread"
    check "thread" "$(basename "$source")" "$out/bin/program"
done
conversions=(-fsanitize="undefined,implicit-conversion,nullability,local-bounds,float-divide-by-zero" -fno-sanitize-recover=all)
for source in "${programs[@]}"; do
    [ -n "$with_clang" ] || break
    clang "$source" "$out/bin/program" "${conversions[@]}" "$plain"
    check "clang, conversions" "$(basename "$source")" "$out/bin/program"
    # Its C++ library would have to be built for it too.
    [ -n "$memory" ] && [ "${source%.cpp}" = "$source" ] || continue
    clang "$source" "$out/bin/program" -fsanitize=memory -fsanitize-memory-track-origins "$memory"
    check "memory" "$(basename "$source")" "$out/bin/program"
done
for source in "${programs[@]}"; do
    # They take a minute and 20 s there. Others call the same functions, and the sanitizers check both.
    case $source in examples-c/quickstart.c | examples-c/threads.c) continue ;; esac
    build "$source" "$out/bin/program" "$plain"
    check "valgrind memcheck" "$(basename "$source")" \
        valgrind --quiet --error-exitcode=9 --leak-check=full "$out/bin/program"
done
# These two see the library that users have, with threads.
build ffi-tests/c/shared_inputs.c "$out/bin/program" "$plain"
for tool in helgrind drd; do
    check "valgrind $tool" shared_inputs.c \
        valgrind --quiet --tool=$tool --suppressions=ffi-tests/c/valgrind.supp --error-exitcode=9 "$out/bin/program"
done

# Checks that the tools find what they are for, and find it inside the library if that is instrumented.
expect_found() {
    local what=$1
    shift
    if "$@" >"$out/log" 2>&1; then return 1; fi
    grep -q "$what" "$out/log"
}
if nightly; then
    build ffi-tests/c/planted.c "$out/bin/program" -fsanitize=address "$address"
    check "address, planted" "a read after the scores" expect_found heap-buffer-overflow "$out/bin/program" overread
    build ffi-tests/c/planted.c "$out/bin/program" -fsanitize=thread ffi-tests/c/tsan_memory.c "$thread"
    check "thread, planted" "two calls, one workspace" expect_found "data race" "$out/bin/program" race
fi
if [ -n "$with_clang" ]; then
    clang ffi-tests/c/planted.c "$out/bin/program" "${conversions[@]}" "$plain"
    check "clang, planted" "a negative length" expect_found "implicit conversion" "$out/bin/program" negative
fi
if [ -n "$memory" ]; then
    clang ffi-tests/c/planted.c "$out/bin/program" -fsanitize=memory "$memory"
    check "memory, planted" "scores never written" expect_found use-of-uninitialized-value "$out/bin/program" unwritten
fi
build ffi-tests/c/planted.c "$out/bin/program" "$plain"
check "valgrind, planted" "a read after the scores" \
    expect_found "Invalid read" valgrind --error-exitcode=9 "$out/bin/program" overread
check "helgrind, planted" "two calls, one workspace" \
    expect_found "Possible data race" valgrind --tool=helgrind --error-exitcode=9 "$out/bin/program" race
check "drd, planted" "two calls, one workspace" \
    expect_found "Conflicting" valgrind --tool=drd --error-exitcode=9 "$out/bin/program" race

if nightly; then
    rust() { RUSTFLAGS="-Zsanitizer=address" cargo +nightly test --quiet --target "$host" --target-dir "$out/rust" "$@"; }
    check "address, Rust" "scoring.rs, decisions.rs, units" rust --lib --test scoring --test decisions
    check "address, Rust" "fuzz targets, 5 s each" env LAVA_FUZZ_SECONDS=5 RUSTFLAGS="-Zsanitizer=address" \
        cargo +nightly test --quiet --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$out/rust"
else
    not_run "no nightly compiler: the Rust tests do not run under AddressSanitizer"
fi
echo "$n checks, $failed with findings"
[ "$failed" -eq 0 ]
