# Three commands for people: `make run` shows the library at work on a real model's cache, `make test` runs the checks that a change needs
# while it is written (minutes), `make check-all` all that a machine without a GPU can run (about half an hour).
#
# For Linux. Meant for macOS too: run, lib, install, uninstall. On Windows: `cargo test`, and `cargo rustc` as in lib below.

CARGO  ?= cargo
CC     ?= cc
CXX    ?= c++
CFLAGS ?= -std=c11 -O2 -Wall -Wextra -Wpedantic -Werror
# Both come from Cargo.toml: the version, and the C ABI's version, which is its major number and part of the SONAME.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
ABI     := $(firstword $(subst ., ,$(VERSION)))

LIB  := target/capi/capi/liblava.a
BIN  := target/examples-c
LIBS := -lm -lpthread -ldl

.PHONY: run ranks test check-all parts test-neon test-windows bench eval eval-fetch eval-small test-eval lib install uninstall check-tools fmt lint lint-features msrv package doc \
	doc-c unit fuzz fuzz-seed fuzz-quick fuzz-smoke sanitize miri break-sample break-all clean

run: $(BIN)/quickstart
	@$(BIN)/quickstart target/budget-map.svg

# Every program of examples-c, built against the static library.
$(BIN)/%: examples-c/%.c examples-c/*.h include/lava.h include/lava_methods.h include/lava_ranks.h lib
	@mkdir -p $(BIN)
	$(CC) $(CFLAGS) -I include $< $(LIB) $(LIBS) -o $@

# One decision of N processes over MPI, 1, 2, 4 or 8. OpenMPI comes from apt if it is not there.
N ?= 4
ranks: lib
	@ffi-tests/programs.sh mpicc=libopenmpi-dev mpirun=openmpi-bin
	@mkdir -p $(BIN)
	mpicc $(CFLAGS) -DWITH_MPI -I include examples-c/ranks.c $(LIB) $(LIBS) -o $(BIN)/ranks-mpi
	mpirun --allow-run-as-root --oversubscribe -n $(N) $(BIN)/ranks-mpi

# The C libraries: target/capi/capi/liblava.a and liblava.so, the latter with the ABI's major version in its SONAME; on macOS
# liblava.dylib, with it in its install name. FEATURES=cuda adds lava_cuda.h's functions.
WITH = $(if $(FEATURES),--features $(FEATURES))
ifeq ($(shell uname -s),Darwin)
SONAME := -install_name,@rpath/liblava.$(ABI).dylib
else
SONAME := -soname,liblava.so.$(ABI)
endif
lib: check-tools
	@echo "building liblava (a minute, the first time)"
	@$(CARGO) rustc --quiet --lib --profile capi $(WITH) --crate-type staticlib --target-dir target/capi
	@$(CARGO) rustc --quiet --lib --profile capi $(WITH) --crate-type cdylib --target-dir target/capi -- \
		-C link-arg=-Wl,$(SONAME)

# Headers, liblava.a, liblava.so with its links, lava.pc and the CMake package, under PREFIX (/usr/local), on Linux and macOS.
# LIBDIR, INCLUDEDIR and DESTDIR as usual.
install: lib
	@VERSION=$(VERSION) include/install/install.sh install
# Removes them again, with the same variables.
uninstall:
	@VERSION=$(VERSION) include/install/install.sh uninstall
export PREFIX LIBDIR INCLUDEDIR DESTDIR FEATURES

# Each part is a target. .ci/parts runs them, says how long each took and names what was not run. PARTS="lint unit" chooses.
TEST_PARTS := lint unit doc doc-c fuzz-quick cuda-quick
ALL_PARTS  := lint lint-features unit doc doc-c fuzz-smoke cuda-plain cuda-ptx cuda-asan cuda-tsan cuda-host-test cuda test-eval sanitize \
	miri break-sample test-llama msrv package
test: check-tools
	@MAKE="$(MAKE)" ALL="$(ALL_PARTS)" .ci/parts $(or $(PARTS),$(TEST_PARTS))
check-all: check-tools
	@MAKE="$(MAKE)" ALL="$(ALL_PARTS)" .ci/parts $(or $(PARTS),$(ALL_PARTS))
parts:
	@echo "make test:      $(TEST_PARTS)"
	@echo "make check-all: $(ALL_PARTS)"

# All code with its tests, and the core alone.
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features lava-kv/rayon -- -D warnings
	$(CARGO) clippy --no-default-features -- -D warnings

# The other combinations of features.
lint-features:
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --features rayon --all-targets -- -D warnings
	NVCC= $(CARGO) clippy --features cuda -- -D warnings
	$(CARGO) clippy --no-default-features --features capi -- -D warnings

# The library builds with the oldest Rust that Cargo.toml promises. Calls of anything newer are also found by clippy, in lint.
MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml).0
msrv:
	@rustup run $(MSRV) rustc --version || rustup toolchain install --profile minimal $(MSRV)
	rustup run $(MSRV) cargo check --lib --features rayon
	rustup run $(MSRV) cargo check --lib --no-default-features
	rustup run $(MSRV) cargo check --lib --no-default-features --features capi
	NVCC= rustup run $(MSRV) cargo check --lib --features cuda

# The package as a registry would get it: it builds by itself, and cargo has no warnings. Whether this version is published already
# is for the person who publishes to check.
package:
	@mkdir -p target && $(CARGO) publish --dry-run --allow-dirty --package lava-kv --target-dir target/package-check \
		>target/package.log 2>&1 || { cat target/package.log; exit 1; }
	@grep Packaged target/package.log
	@! grep '^warning' target/package.log | grep -v 'aborting upload due to dry run\|already exists on'

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

# The reference of the headers and the guide, in target/doc-c/html. Doxygen comes from apt if it is not there.
doc-c:
	@ffi-tests/programs.sh doxygen
	@mkdir -p target && VERSION=$(VERSION) doxygen include/Doxyfile
	@echo "the C and C++ reference is in target/doc-c/html/index.html"

# ffi-tests/libclang.sh finds libclang for bindgen, or installs it.
unit:
	$(CARGO) test --workspace --features lava-kv/rayon

# The aarch64 tests that can run on x86-64, under QEMU. Not part of `make check-all`: it installs and downloads several hundred MB.
test-neon: check-tools
	@CARGO=$(CARGO) tests/neon.sh

# The programs, the DLL and the tests for x86-64 Windows, under wine. Not part of `make check-all`: it installs more than 1 GB.
test-windows: check-tools
	@CARGO=$(CARGO) tests/windows.sh

# Arbitrary arguments and every backend against the reference: all seeds, then 10 seconds of random cases for each of five questions. No
# fuzzer is needed. fuzz-quick is the same with 2 seconds.
fuzz-smoke:
	$(CARGO) test --quiet --manifest-path fuzz/Cargo.toml
fuzz-quick:
	LAVA_FUZZ_SECONDS=2 $(CARGO) test --quiet --manifest-path fuzz/Cargo.toml

# The same with a fuzzer, SECONDS for each target, or RUNS executions. Needs nightly Rust and cargo-fuzz.
SECONDS ?= 60
fuzz:
	RUNS=$(RUNS) fuzz/run.sh $(SECONDS)

# Keeps cases as seeds, from which every later run starts: make fuzz-seed TARGET=abi FILES=fuzz/artifacts/abi/crash-...
fuzz-seed:
	$(CARGO) run --quiet --manifest-path fuzz/Cargo.toml --example seeds -- add $(TARGET) $(FILES)

# C programs and Rust tests under sanitizers and valgrind, five minutes. It installs what is missing, except a nightly compiler.
sanitize: lib
	ffi-tests/sanitize.sh

# Some seeds of each fuzz target under Miri, which finds what no sanitizer does, two minutes. Needs nightly Rust.
miri:
	fuzz/miri.sh

# Times against the machine's limits and against PyTorch, if PYTHON has it. RECORD=file keeps the tables.
PYTHON ?= python3
bench: check-tools
	$(CARGO) run --release --quiet --manifest-path benches/Cargo.toml -- --python $(PYTHON) $(if $(RECORD),--record $(RECORD))

# What eviction methods lose on a published model, at equal bytes. What is missing of model and texts is fetched first; results that are
# in eval/results/published are not made again, the tables go into docs/evaluation.md, and pictures beside the results. ARGS="--quick" for
# a look that changes no file.
EVAL := $(CARGO) run --release --quiet --manifest-path eval/Cargo.toml --bin
eval: check-tools eval-fetch
	$(EVAL) published -- $(if $(ARGS),$(ARGS),--readme docs/evaluation.md --pictures eval/results/published)
eval-fetch:
	@eval/fetch.sh

# The same on the small model of eval/model, whose every answer can be checked, and from which nothing is advised.
eval-small: check-tools
	$(EVAL) eval -- $(if $(ARGS),$(ARGS),--out eval/results --readme docs/evaluation.md)

test-eval:
	@[ -e target/published/model.gguf ] || echo "test-eval: agreement with llama.cpp on the published model (make eval-fetch brings it)" \
		>>$${LAVA_NOT_RUN:-/dev/null}
	$(CARGO) clippy --release --manifest-path eval/Cargo.toml --all-targets -- -D warnings
	$(CARGO) test --release --manifest-path eval/Cargo.toml

include examples-c/llama.cpp/llama.mk
include cuda/cuda.mk

# What the tests are worth: promises of the headers and places in the kernels are broken on purpose, and a test must notice each. Even in
# the sample, the text to break is looked for in all of them.
break-sample: lib $(CU_KIT)/.fetched
	ffi-tests/break_promises.py --sample 10
	cuda/tests/break.py --sample 15
break-all: lib $(CU_KIT)/.fetched
	ffi-tests/break_promises.py
	cuda/tests/break.py

fmt:
	$(CARGO) fmt --all

check-tools:
	@for tool in $(CARGO) $(CC) $(CXX) python3; do command -v $$tool >/dev/null || \
		{ echo "missing: $$tool. Install stable Rust (rustup), gcc and g++, make and python3, then run this again."; exit 1; }; done

clean:
	$(CARGO) clean
