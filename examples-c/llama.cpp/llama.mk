# `make llama`: the whole of llama.cpp with lava in it, from nothing to answers. README.md beside this file says more.

LLAMA  := examples-c/llama.cpp
L_HOME := target/llama.cpp
JOBS   ?= $(shell nproc)

.PHONY: llama llama-fetch llama-build

llama-fetch: check-tools
	@CARGO=$(CARGO) $(LLAMA)/fetch.sh

# Four minutes of CPU the first time; then only what has changed.
llama-build: llama-fetch lib
	@$(L_HOME)/cmake -S $(LLAMA) -B $(L_HOME)/build > $(L_HOME)/configure.log 2>&1 || { cat $(L_HOME)/configure.log; exit 1; }
	@$(L_HOME)/cmake --build $(L_HOME)/build --parallel $(JOBS)
