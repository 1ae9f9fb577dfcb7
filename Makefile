# Two commands for people: `make run` shows the library at work on a real model's cache, `make test` runs every check.

CARGO  ?= cargo
CC     ?= cc
CXX    ?= c++
CFLAGS ?= -std=c11 -O2 -Wall -Wextra -Wpedantic -Werror
ABI    := 0

LIB  := target/capi/capi/liblava.a
BIN  := target/examples-c
LIBS := -lm -lpthread -ldl

.PHONY: run test bench lib check-tools fmt lint doc unit fuzz fuzz-smoke sanitize clean

run: $(BIN)/quickstart
	@$(BIN)/quickstart target/budget-map.svg

# Every program of examples-c, built against the static library.
$(BIN)/%: examples-c/%.c examples-c/*.h include/lava.h lib
	@mkdir -p $(BIN)
	$(CC) $(CFLAGS) -I include $< $(LIB) $(LIBS) -o $@

# The C libraries: target/capi/capi/liblava.a and liblava.so, the latter with the ABI's major version in its SONAME.
lib: check-tools
	@echo "building liblava (a minute, the first time)"
	@$(CARGO) rustc --quiet --lib --profile capi --crate-type staticlib --target-dir target/capi
	@$(CARGO) rustc --quiet --lib --profile capi --crate-type cdylib --target-dir target/capi -- \
		-C link-arg=-Wl,-soname,liblava.so.$(ABI)

test: check-tools lint doc unit fuzz-smoke
	@echo "all checks passed"

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --features rayon --all-targets -- -D warnings
	$(CARGO) clippy --no-default-features -- -D warnings
	$(CARGO) clippy --no-default-features --features capi -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

# libclang for bindgen is found, or brought, by ffi-tests/libclang.sh.
unit:
	$(CARGO) test --workspace --features lava/rayon

# Arbitrary arguments and every backend against the reference, 10 seconds for each of five questions. No fuzzer is needed.
fuzz-smoke:
	$(CARGO) test --quiet --manifest-path fuzz/Cargo.toml

# The same with a fuzzer, SECONDS for each target. Needs nightly Rust and cargo-fuzz.
SECONDS ?= 60
fuzz:
	fuzz/run.sh $(SECONDS)

# C programs and Rust tests under sanitizers and valgrind, ten minutes.
sanitize: lib
	ffi-tests/sanitize.sh

# Times against the machine's limits and against PyTorch, where PYTHON has it. RECORD=file keeps the tables.
PYTHON ?= python3
bench: check-tools
	$(CARGO) run --release --quiet --manifest-path benches/Cargo.toml -- --python $(PYTHON) $(if $(RECORD),--record $(RECORD))

fmt:
	$(CARGO) fmt --all

check-tools:
	@for tool in $(CARGO) $(CC) $(CXX) python3; do command -v $$tool >/dev/null || \
		{ echo "missing: $$tool. Install stable Rust (rustup), gcc and g++, make and python3, then run this again."; exit 1; }; done

clean:
	$(CARGO) clean
