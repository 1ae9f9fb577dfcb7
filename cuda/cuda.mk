# The CUDA kernels: compiled with nvcc from PyPI wheels, tested without a GPU. README.md beside this file says more.

CU      := cuda
CU_HOME := target/cuda
CU_KIT  := target/cuda-toolkit/nvidia/cu13
NVCC    ?= $(CU_KIT)/bin/nvcc
CU_NAMES := score entropy budgets select cascade compact attend
CU_ARCHS := sm_80 sm_86 sm_89 sm_90a sm_100
CU_CUBINS := $(foreach arch,$(CU_ARCHS),$(foreach name,$(CU_NAMES),$(CU_HOME)/$(name).$(arch).cubin))
CU_PTX   := $(foreach name,$(CU_NAMES),$(CU_HOME)/$(name).ptx)
CU_SOURCES := $(wildcard $(CU)/*.cu $(CU)/*.cuh $(CU)/*.h)
CU_TESTS := emu shares select cache score

# No fused operations where the CPU's bits are the goal. The others' f32 sums may use them.
CU_FLAGS := -std=c++17 -O3
$(CU_HOME)/entropy.% $(CU_HOME)/cascade.% $(CU_HOME)/budgets.% $(CU_HOME)/select.%: CU_FLAGS += -fmad=false

.PHONY: cuda cuda-resources cuda-test cuda-tsan cuda-asan cuda-break

# One fatbin per source file: machine code for each architecture and PTX for those to come.
cuda: $(foreach name,$(CU_NAMES),$(CU_HOME)/$(name).fatbin)
	@python3 $(CU)/resources.py check $(CU_KIT) $(CU_CUBINS)

cuda-resources: $(CU_CUBINS)
	@python3 $(CU)/resources.py update $(CU_KIT) $(CU_CUBINS)

$(CU_KIT)/.fetched: $(CU)/requirements.txt
	@echo "fetching nvcc from PyPI (100 MB)"
	@python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --no-deps --upgrade \
		--target target/cuda-toolkit -r $<
	@touch $@

$(CU_HOME)/%.cubin: $(CU_SOURCES) $(CU_KIT)/.fetched
	@mkdir -p $(CU_HOME)
	@echo "nvcc $*"
	@$(NVCC) $(CU_FLAGS) -arch=$(lastword $(subst ., ,$*)) -cubin -Xptxas -v $(CU)/$(firstword $(subst ., ,$*)).cu -o $@ \
		>$(CU_HOME)/$*.log 2>&1 || { cat $(CU_HOME)/$*.log; exit 1; }

$(CU_HOME)/%.ptx: $(CU_SOURCES) $(CU_KIT)/.fetched
	@mkdir -p $(CU_HOME)
	@echo "nvcc $*.ptx"
	@$(NVCC) $(CU_FLAGS) -arch=compute_80 -ptx $(CU)/$*.cu -o $@

$(CU_HOME)/%.fatbin: $(foreach arch,$(CU_ARCHS),$(CU_HOME)/%.$(arch).cubin) $(CU_HOME)/%.ptx
	@$(CU_KIT)/bin/fatbinary --create=$@ $(foreach arch,$(CU_ARCHS),--image3=kind=elf,sm=$(arch:sm_%=%),file=$(CU_HOME)/$*.$(arch).cubin) \
		--image3=kind=ptx,sm=80,file=$(CU_HOME)/$*.ptx
.PRECIOUS: $(CU_HOME)/%.cubin $(CU_HOME)/%.ptx

# The kernels under emulation against the CPU library: in several schedules, then once under each sanitizer.
CU_CXX := $(CXX) -std=c++17 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-parameter -ffp-contract=off -isystem $(CU_KIT)/include
# The emulation itself is not instrumented: it is the hardware.
CU_EMU := $(CU_CXX) -O1 -fno-builtin -fno-tree-loop-distribute-patterns

cuda-test: cuda-plain cuda-tsan cuda-asan
	@echo "all kernels passed"
.PHONY: cuda-plain
cuda-plain: $(foreach test,$(CU_TESTS),$(CU_HOME)/test-$(test))
	@set -e; for test in $(CU_TESTS); do LAVA_SEEDS=3 $(CU_HOME)/test-$$test; done
cuda-tsan: $(foreach test,$(CU_TESTS),$(CU_HOME)/tsan-$(test))
	@echo "under ThreadSanitizer:"
	@set -e; for test in $(CU_TESTS); do LAVA_QUICK=1 LAVA_SEEDS=1 TSAN_OPTIONS=halt_on_error=1 $(CU_HOME)/tsan-$$test; done
cuda-asan: $(foreach test,$(CU_TESTS),$(CU_HOME)/asan-$(test))
	@echo "under AddressSanitizer and UndefinedBehaviorSanitizer:"
	@set -e; for test in $(CU_TESTS); do LAVA_QUICK=1 LAVA_SEEDS=1 $(CU_HOME)/asan-$$test; done

CU_TEST_NEEDS = $(CU)/tests/test.h $(CU_SOURCES) $(CU)/emu/emu.h $(CU)/emu/emu.cpp $(CU_KIT)/.fetched lib
$(CU_HOME)/test-%: $(CU)/tests/%.cpp $(CU_TEST_NEEDS)
	@mkdir -p $(CU_HOME)
	@$(CU_EMU) -c $(CU)/emu/emu.cpp -o $@.emu.o
	@$(CU_CXX) -O2 -DLAVA_EMU -I $(CU) $< $@.emu.o $(LIB) $(LIBS) -o $@
$(CU_HOME)/tsan-%: $(CU)/tests/%.cpp $(CU_TEST_NEEDS)
	@mkdir -p $(CU_HOME)
	@$(CU_EMU) -DEMU_TSAN -c $(CU)/emu/emu.cpp -o $@.emu.o
	@$(CU_CXX) -O1 -fsanitize=thread -DLAVA_EMU -I $(CU) $< $@.emu.o $(LIB) $(LIBS) -o $@
$(CU_HOME)/asan-%: $(CU)/tests/%.cpp $(CU_TEST_NEEDS)
	@mkdir -p $(CU_HOME)
	@$(CU_EMU) -DEMU_ASAN -c $(CU)/emu/emu.cpp -o $@.emu.o
	@$(CU_CXX) -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -DLAVA_EMU -I $(CU) $< $@.emu.o $(LIB) $(LIBS) -o $@

# What the tests are worth: removes barriers and turns rules around, one at a time, and wants a test to say so.
cuda-break: lib $(CU_KIT)/.fetched
	@python3 $(CU)/tests/break.py
