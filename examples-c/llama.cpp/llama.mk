# llama.cpp with lava in it. README.md beside this file says more.

LLAMA  := examples-c/llama.cpp
L_HOME := target/llama.cpp
JOBS   ?= $(shell nproc)
L_CONFIGURE = $(L_HOME)/cmake --log-level=WARNING -Wno-dev -S $(LLAMA) -B $(L_HOME)/$(1)
# As a make of its own, which does not tell of every folder that it enters, and which shows what a failed test printed.
L_BUILD = env -u MAKELEVEL -u MAKEFLAGS CTEST_OUTPUT_ON_FAILURE=1 $(L_HOME)/cmake --build $(L_HOME)/$(1)

.PHONY: llama test-llama test-llama-asan bench-llama llama-fetch llama-model llama-build

# From nothing to answers: a published model sums up a long text from all of its cache, half and a fifth, and is asked about it.
# `recall.py show` has the trained model, whose answers are right or wrong.
llama: llama-build llama-model
	@$(PYTHON) $(LLAMA)/show.py

# What the command line promises, also with a published model, then what the patch does (tests/).
test-llama: llama-build llama-model $(L_HOME)/recall.gguf
	@$(PYTHON) $(LLAMA)/test_cli.py
	@$(call L_BUILD,build) --target test

# The same under the address sanitizer: a build of its own, four more minutes.
test-llama-asan: llama-fetch lib $(L_HOME)/recall.gguf
	@$(call L_CONFIGURE,build-asan) -DCMAKE_BUILD_TYPE=RelWithDebInfo \
		-DCMAKE_C_FLAGS="-fsanitize=address -w" -DCMAKE_CXX_FLAGS="-fsanitize=address -w"
	@$(call L_BUILD,build-asan) --parallel $(JOBS)
	@LLAMA_LAVA=$(L_HOME)/build-asan/bin/llama-lava $(PYTHON) $(LLAMA)/test_cli.py Errors Output
	@echo leak:ggml_backend_rpc >$(L_HOME)/leaks  # its list of servers, which it never frees
	@LSAN_OPTIONS=suppressions=$(CURDIR)/$(L_HOME)/leaks:print_suppressions=0 $(call L_BUILD,build-asan) --target test

# Forty minutes. RECORD=file keeps the tables.
bench-llama: llama-build llama-model $(L_HOME)/recall.gguf
	@$(PYTHON) $(LLAMA)/bench.py $(if $(RECORD),--record $(RECORD))

llama-fetch: check-tools
	@CARGO=$(CARGO) $(LLAMA)/fetch.sh

# SmolLM2-135M-Instruct, 92 MB, once, its sum checked.
llama-model: check-tools
	@eval/fetch.sh model

# Four minutes of CPU the first time; then only what has changed.
llama-build: llama-fetch lib
	@echo "building llama.cpp and llama-lava (four minutes of CPU, the first time); log: $(L_HOME)/build.log"
	@{ $(call L_CONFIGURE,build) && $(call L_BUILD,build) --parallel $(JOBS); } >$(L_HOME)/build.log 2>&1 || \
		{ tail -n 40 $(L_HOME)/build.log; exit 1; }

$(L_HOME)/%.gguf: eval/model/%.safetensors $(LLAMA)/gguf_model.py | llama-fetch
	@$(PYTHON) $(LLAMA)/gguf_model.py $* $@
