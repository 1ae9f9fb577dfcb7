# llama.cpp with lava in it. README.md beside this file says more.

LLAMA  := examples-c/llama.cpp
L_HOME := target/llama.cpp
JOBS   ?= $(shell nproc)
# As a make of its own, which does not tell of every folder that it enters.
L_BUILD = env -u MAKELEVEL -u MAKEFLAGS $(L_HOME)/cmake --build $(L_HOME)/build

.PHONY: llama test-llama bench-llama llama-fetch llama-build

# From nothing to answers: the trained model reads a prompt that ends in questions, keeps a fifth of it, and is asked again.
llama: llama-build $(L_HOME)/recall.gguf
	@$(PYTHON) $(LLAMA)/recall.py show

# What the command line promises, then what the patch does (tests/).
test-llama: llama-build $(L_HOME)/recall.gguf
	@$(PYTHON) $(LLAMA)/test_cli.py
	@CTEST_OUTPUT_ON_FAILURE=1 LAVA_TEST_MODELS=$(CURDIR)/$(L_HOME) $(L_BUILD) --target test

# Half an hour. RECORD=file keeps the tables.
bench-llama: llama-build $(L_HOME)/recall.gguf
	@$(PYTHON) $(LLAMA)/bench.py $(if $(RECORD),--record $(RECORD))

llama-fetch: check-tools
	@CARGO=$(CARGO) $(LLAMA)/fetch.sh

# Four minutes of CPU the first time; then only what has changed.
llama-build: llama-fetch lib
	@$(L_HOME)/cmake -S $(LLAMA) -B $(L_HOME)/build >$(L_HOME)/configure.log 2>&1 || { cat $(L_HOME)/configure.log; exit 1; }
	@$(L_BUILD) --parallel $(JOBS)

$(L_HOME)/%.gguf: model/%.safetensors $(LLAMA)/gguf_model.py | llama-fetch
	@$(PYTHON) $(LLAMA)/gguf_model.py $* $@
