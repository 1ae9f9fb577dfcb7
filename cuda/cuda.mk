# The CUDA kernels: compiled with nvcc from PyPI wheels, tested without a GPU. README.md in this folder says more.

CU      := cuda
CU_HOME := target/cuda
CU_KIT  := target/cuda-toolkit/nvidia/cu13
NVCC    ?= $(CU_KIT)/bin/nvcc
CU_NAMES := $(basename $(notdir $(wildcard $(CU)/*.cu)))
CU_ARCHS := sm_80 sm_86 sm_89 sm_90a sm_100
CU_CUBINS := $(foreach arch,$(CU_ARCHS),$(foreach name,$(CU_NAMES),$(CU_HOME)/$(name).$(arch).cubin))
CU_PTX   := $(foreach name,$(CU_NAMES),$(CU_HOME)/$(name).ptx)
CU_SOURCES := $(wildcard $(CU)/*.cu $(CU)/*.cuh $(CU)/*.h)
CU_TESTS := emu wrappers shares select global compact score attend

# A source may ask for its own options, after "// nvcc:" (build.rs looks there too).
CU_FLAGS = -std=c++17 -O3 $(shell sed -n 's|^// nvcc: ||p' $(CU)/$(1).cu)

.PHONY: cuda cuda-resources cuda-sass cuda-test cuda-tsan cuda-asan cuda-ptx cuda-break

# One fatbin per source file: machine code for each architecture and PTX for those to come.
cuda: $(foreach name,$(CU_NAMES),$(CU_HOME)/$(name).fatbin)
	@python3 $(CU)/resources.py check $(CU_KIT) $(CU_CUBINS)

cuda-resources: $(CU_CUBINS)
	@python3 $(CU)/resources.py update $(CU_KIT) $(CU_CUBINS)

# What the hottest loops are made of, of the architectures in CU_SASS.
CU_SASS ?= sm_80 sm_90a
cuda-sass: $(foreach name,$(CU_NAMES),$(foreach arch,$(CU_SASS),$(CU_HOME)/$(name).$(arch).cubin))
	@python3 $(CU)/sass.py $(CU_KIT) $^

$(CU_KIT)/.fetched: $(CU)/requirements.txt
	@echo "fetching nvcc from PyPI (100 MB)"
	@python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --no-deps --upgrade \
		--target target/cuda-toolkit -r $<
	@touch $@

$(CU_HOME)/%.cubin: $(CU_SOURCES) $(CU_KIT)/.fetched
	@mkdir -p $(CU_HOME)
	@echo "nvcc $*"
	@$(NVCC) $(call CU_FLAGS,$(firstword $(subst ., ,$*))) -arch=$(lastword $(subst ., ,$*)) -cubin -Xptxas -v \
		$(CU)/$(firstword $(subst ., ,$*)).cu -o $@ \
		>$(CU_HOME)/$*.log 2>&1 || { cat $(CU_HOME)/$*.log; exit 1; }

$(CU_HOME)/%.ptx: $(CU_SOURCES) $(CU_KIT)/.fetched
	@mkdir -p $(CU_HOME)
	@echo "nvcc $*.ptx"
	@$(NVCC) $(call CU_FLAGS,$*) -arch=compute_80 -ptx $(CU)/$*.cu -o $@

$(CU_HOME)/%.fatbin: $(foreach arch,$(CU_ARCHS),$(CU_HOME)/%.$(arch).cubin) $(CU_HOME)/%.ptx
	@$(CU_KIT)/bin/fatbinary --create=$@ $(foreach arch,$(CU_ARCHS),--image3=kind=elf,sm=$(arch:sm_%=%),file=$(CU_HOME)/$*.$(arch).cubin) \
		--image3=kind=ptx,sm=80,file=$(CU_HOME)/$*.ptx
.PRECIOUS: $(CU_HOME)/%.cubin $(CU_HOME)/%.ptx $(CU_HOME)/ptx-obj/%.asan.o

# The kernels under emulation against the CPU library: in several schedules, then once under each sanitizer.
CU_CXX := $(CXX) -std=c++17 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-parameter -ffp-contract=off -isystem $(CU_KIT)/include
# The emulation itself is not instrumented: it is the hardware.
CU_EMU := $(CU_CXX) -O1 -fno-builtin -fno-tree-loop-distribute-patterns

cuda-test: cuda-plain cuda-ptx cuda-tsan cuda-asan
	@echo "all kernels passed"
.PHONY: cuda-plain
cuda-plain: $(foreach test,$(CU_TESTS),$(CU_HOME)/test-$(test))
	@set -e; for test in $(CU_TESTS); do LAVA_SEEDS=2 $(CU_HOME)/test-$$test; done
# All cases take many minutes (SAMPLE=1): of each check the first and one of SAMPLE are in `make check-all`.
cuda-tsan: SAMPLE ?= 16
cuda-asan: SAMPLE ?= 8
cuda-tsan: $(foreach test,$(CU_TESTS),$(CU_HOME)/tsan-$(test))
	@echo "under ThreadSanitizer, one case of $(SAMPLE):"
	@set -e; for test in $(CU_TESTS); do LAVA_SAMPLE=$(SAMPLE) LAVA_QUICK=1 LAVA_SEEDS=1 TSAN_OPTIONS=halt_on_error=1 $(CU_HOME)/tsan-$$test; done
cuda-asan: $(foreach test,$(CU_TESTS),$(CU_HOME)/asan-$(test))
	@echo "under AddressSanitizer and UndefinedBehaviorSanitizer, one case of $(SAMPLE):"
	@set -e; for test in $(CU_TESTS); do LAVA_SAMPLE=$(SAMPLE) LAVA_QUICK=1 LAVA_SEEDS=1 $(CU_HOME)/asan-$$test; done

CU_TEST_NEEDS = $(CU)/tests/test.h $(CU)/tests/last_words.h $(CU_SOURCES) $(CU)/plan.c $(CU)/emu/emu.h $(CU)/emu/emu.cpp $(CU_KIT)/.fetched lib
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

# What nvcc has made of the kernels, run by an interpreter of PTX in place of the emulation: the same tests, and nothing read or written
# outside of the tests' memory.
CU_PTX_PARTS := $(patsubst $(CU)/ptx/%.cpp,%,$(wildcard $(CU)/ptx/*.cpp))
CU_PTX_TESTS := $(filter-out emu,$(CU_TESTS))
cuda-ptx: $(CU_HOME)/ptx-ptx $(foreach test,$(CU_PTX_TESTS),$(CU_HOME)/ptx-$(test)) $(CU_PTX) $(CU_HOME)/wrappers.ptx
	@echo "as nvcc has compiled them:"
	@$(CU_HOME)/ptx-ptx
	@set -e; for test in $(CU_PTX_TESTS); do LAVA_PTX=$(CU_HOME) LAVA_SEEDS=1 $(CU_HOME)/ptx-$$test; done
$(CU_HOME)/ptx-obj/%.o: $(CU)/ptx/%.cpp $(CU)/ptx/ptx.h $(CU_KIT)/.fetched
	@mkdir -p $(@D)
	@$(CU_CXX) -O2 -fPIC -c $< -o $@
# Its reads and writes are the kernels', so AddressSanitizer sees those that are outside of a test's memory.
$(CU_HOME)/ptx-obj/%.asan.o: $(CU)/ptx/%.cpp $(CU)/ptx/ptx.h $(CU_KIT)/.fetched
	@mkdir -p $(@D)
	@$(CU_CXX) -O2 -fsanitize=address -c $< -o $@
$(CU_HOME)/wrappers.ptx: $(CU)/tests/wrappers.cpp $(CU)/tests/test.h $(CU_SOURCES) $(CU_KIT)/.fetched
	@$(NVCC) -std=c++17 -O3 -arch=compute_80 -ptx -x cu $< -o $@
CU_PTX_OBJECTS := $(foreach part,$(CU_PTX_PARTS),$(CU_HOME)/ptx-obj/$(part).o)
$(CU_HOME)/ptx-%: $(CU)/tests/%.cpp $(CU_TEST_NEEDS) $(CU_PTX_OBJECTS:.o=.asan.o)
	@$(CU_EMU) -DEMU_ASAN -c $(CU)/emu/emu.cpp -o $@.emu.o
	@$(CU_CXX) -O1 -fsanitize=address -DLAVA_EMU -DLAVA_PTX -I $(CU) $< $@.emu.o $(CU_PTX_OBJECTS:.o=.asan.o) -rdynamic $(LIB) $(LIBS) -o $@

# The path from C through liblava and the driver to the kernels, with no GPU: libcuda is tests/fake_driver.cpp, over the emulation. On a
# machine with a GPU `make cuda-path` runs the same program against the real one. One architecture: the fake driver does not look into
# the images, so what `make cuda-path` needs is what it should be.
CU_TEST_ARCHS ?= 90a
CU_DRIVER := $(CU_CXX) -O1 -fPIC -DLAVA_EMU -I $(CU)
.PHONY: cuda-host-test cuda-path cuda-lib cuda-lib-plain
cuda-lib: $(CU_KIT)/.fetched
	@echo "building liblava with CUDA for sm_$(CU_TEST_ARCHS) (a minute, the first time)"
	@LAVA_REQUIRE_CUDA=1 LAVA_CUDA_ARCHS=$(CU_TEST_ARCHS) $(CARGO) rustc --quiet --lib --profile capi --features cuda \
		--crate-type staticlib --target-dir target/cuda-lib
# As where there is no nvcc.
cuda-lib-plain:
	@NVCC= $(CARGO) rustc --quiet --lib --features cuda --crate-type staticlib --target-dir target/cuda-lib-plain

# Each .cu by itself, as nvcc compiles it, so that two may have helpers of the same name: each has its own namespace here.
$(CU_HOME)/fake/%.o: $(CU)/%.cu $(CU_SOURCES) $(CU)/emu/emu.h $(CU_KIT)/.fetched
	@mkdir -p $(@D)
	@$(CU_DRIVER) -Dlava=lava_in_$* -x c++ -c $< -o $@
$(CU_HOME)/fake/libcuda.so.1: $(CU)/tests/fake_driver.cpp $(CU)/emu/emu.cpp $(foreach name,$(CU_NAMES),$(CU_HOME)/fake/$(name).o) $(CU_PTX_OBJECTS)
	@mkdir -p $(@D)
	@$(CU_EMU) -fPIC -c $(CU)/emu/emu.cpp -o $(@D)/emu.o
	@$(CU_DRIVER) -shared -Wl,-Bsymbolic -Wl,-soname,libcuda.so.1 $< $(@D)/*.o $(CU_PTX_OBJECTS) -ldl -o $@
# A driver that is too old: it has nothing but cuInit.
$(CU_HOME)/old/libcuda.so.1: $(CU)/tests/old_driver.c
	@mkdir -p $(@D)
	@$(CC) -shared -fPIC -Wl,-soname,libcuda.so.1 $< -o $@
CU_PATH := $(wildcard $(CU)/tests/path*.c)
$(CU_HOME)/path: $(CU_PATH) $(CU)/tests/path.h include/lava.h include/lava_cuda.h cuda-lib
	@mkdir -p $(CU_HOME)
	@$(CC) $(CFLAGS) -I include -I $(CU) $(CU_PATH) target/cuda-lib/capi/liblava.a $(LIBS) -o $@
# examples-c/cuda, linked with the fake driver; on a GPU the same program finds the real one.
$(CU_HOME)/prefill: examples-c/cuda/prefill.c examples-c/*.h include/lava.h include/lava_cuda.h cuda-lib $(CU_HOME)/fake/libcuda.so.1
	@$(CC) $(CFLAGS) -I include -isystem $(CU_KIT)/include $< target/cuda-lib/capi/liblava.a $(CU_HOME)/fake/libcuda.so.1 $(LIBS) -o $@
# lava_cuda.hpp, in both of its languages.
CU_HPP := $(CU_HOME)/hpp17 $(CU_HOME)/hpp20
$(CU_HPP): $(CU_HOME)/hpp%: $(CU)/tests/hpp.cpp include/lava.h include/lava.hpp include/lava_cuda.h include/lava_cuda.hpp cuda-lib $(CU_HOME)/fake/libcuda.so.1
	@$(CXX) -std=c++$* -O2 -Wall -Wextra -Wpedantic -Werror -I include -isystem $(CU_KIT)/include $< target/cuda-lib/capi/liblava.a \
		$(CU_HOME)/fake/libcuda.so.1 $(LIBS) -o $@
$(CU_HOME)/path_plain: $(CU_PATH) $(CU)/tests/path.h include/lava.h include/lava_cuda.h cuda-lib-plain
	@mkdir -p $(CU_HOME)
	@$(CC) $(CFLAGS) -I include -I $(CU) $(CU_PATH) target/cuda-lib-plain/debug/liblava.a $(LIBS) -o $@

# What the compiled kernels ask of the hardware, counted; traffic.txt is written again, for review in the diff.
.PHONY: cuda-traffic
$(CU_HOME)/traffic: $(CU)/tests/traffic.c $(CU)/tests/path_driver.c $(CU)/tests/path.h include/lava_cuda.h cuda-lib
	@$(CC) $(CFLAGS) -I include -I $(CU) $(CU)/tests/traffic.c $(CU)/tests/path_driver.c target/cuda-lib/capi/liblava.a $(LIBS) -o $@
CU_COUNT = FAKE_PROCESSORS=132 FAKE_PTX=$(CU_KIT)/bin/cuobjdump LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/traffic
cuda-traffic: $(CU_HOME)/traffic $(CU_HOME)/fake/libcuda.so.1
	@$(CU_COUNT) | tee $(CU)/traffic.txt

cuda-host-test: $(CU_HOME)/path_plain $(CU_HOME)/path $(CU_HOME)/prefill $(CU_HPP) $(CU_HOME)/fake/libcuda.so.1 $(CU_HOME)/old/libcuda.so.1
	LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/path
	LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/prefill
	LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/hpp17
	LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/hpp20
	@# The kernels as they are in the library, compiled.
	FAKE_PTX=$(CU_KIT)/bin/cuobjdump LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/path
	@# A GPU of compute capability 8.6 has less shared memory.
	FAKE_SHARED=101376 LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/path
	@# And one that does not let blocks wait for each other, nor has managed memory.
	FAKE_ALONE=1 LAVA_PINNED=1 LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/path
	@# And one of which the context has a part.
	FAKE_FEWER=3 LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/path
	LD_LIBRARY_PATH=$(CU_HOME)/old $(CU_HOME)/path init LAVA_ERR_DRIVER cuCtxGetCurrent
	FAKE_FAIL=init LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/path init LAVA_ERR_DRIVER CUDA_ERROR_NO_DEVICE
	LD_LIBRARY_PATH=$(CU_HOME)/fake $(CU_HOME)/path_plain init LAVA_ERR_UNSUPPORTED "built without nvcc"
	@# No libcuda at all can only be seen where there is none.
	@ldconfig -p | grep -q libcuda.so || { set -x; $(CU_HOME)/path init LAVA_ERR_DRIVER libcuda; }
cuda-path: $(CU_HOME)/path
	$(CU_HOME)/path

# A sample of cuda-host-test for `make test`: the path over the emulation, once, with nothing compiled by nvcc and no interpreter.
.PHONY: cuda-quick cuda-lib-quick
cuda-lib-quick: $(CU_KIT)/.fetched
	@NVCC=$(CURDIR)/$(CU)/tests/no_nvcc.sh $(CARGO) rustc --quiet --lib --features cuda --crate-type staticlib --target-dir target
$(CU_HOME)/quick/libcuda.so.1: $(CU)/tests/fake_driver.cpp $(CU)/tests/no_ptx.cpp $(CU)/emu/emu.cpp $(foreach name,$(CU_NAMES),$(CU_HOME)/fake/$(name).o)
	@mkdir -p $(@D)
	@$(CU_EMU) -fPIC -c $(CU)/emu/emu.cpp -o $(@D)/emu.o
	@$(CU_DRIVER) -shared -Wl,-Bsymbolic -Wl,-soname,libcuda.so.1 $(filter-out %/emu.cpp,$^) $(@D)/emu.o -ldl -o $@
$(CU_HOME)/quick/path: $(CU_PATH) $(CU)/tests/path.h include/lava.h include/lava_cuda.h cuda-lib-quick
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS) -I include -I $(CU) $(CU_PATH) target/debug/liblava.a $(LIBS) -o $@
cuda-quick: $(CU_HOME)/quick/path $(CU_HOME)/quick/libcuda.so.1
	LD_LIBRARY_PATH=$(CU_HOME)/quick $(CU_HOME)/quick/path

# What cuda/gpu.sh runs on a machine with a GPU and without Rust: the library with CUDA for all architectures, the path, and the kernels'
# tests, which compare with the CPU library. It is copied there with the source: target/cuda-gpu.
CU_GPU := target/cuda-gpu
CU_GPU_TESTS := $(filter-out emu,$(CU_TESTS))
.PHONY: cuda-gpu
cuda-gpu: $(CU_KIT)/.fetched $(CU_HOME)/fake/libcuda.so.1 $(foreach test,$(CU_GPU_TESTS),$(CU_GPU)/$(test))
	@echo "building liblava with CUDA for all architectures (minutes, the first time)"
	@LAVA_REQUIRE_CUDA=1 $(CARGO) rustc --quiet --lib --profile capi --features cuda --crate-type staticlib,cdylib --target-dir target/cuda-all
	@cp target/cuda-all/capi/liblava.so $(CU_GPU)/
	@$(CC) $(CFLAGS) -I include -I $(CU) $(CU_PATH) -L $(CU_GPU) -llava -Wl,-rpath,'$$ORIGIN' $(LIBS) -o $(CU_GPU)/path
	@$(CC) $(CFLAGS) -I include -isystem $(CU_KIT)/include examples-c/cuda/prefill.c -L $(CU_GPU) -llava -Wl,-rpath,'$$ORIGIN' \
		$(CU_HOME)/fake/libcuda.so.1 $(LIBS) -o $(CU_GPU)/prefill
	@du -sh $(CU_GPU)
# The order of rounding is the sources' own choice, so a test is compiled as what it tests is.
$(CU_GPU)/%: $(CU)/tests/%.cpp $(CU_TEST_NEEDS)
	@mkdir -p $(CU_GPU)
	@echo "nvcc $*"
	@$(NVCC) -std=c++17 -O3 $(if $(filter shares select global,$*),-fmad=false) -gencode arch=compute_80,code=[sm_80,compute_80] \
		-gencode arch=compute_90a,code=sm_90a -L $(CU_KIT)/lib -x cu $< -o $@ -Xlinker $(LIB) -lm -lpthread -ldl

# What the tests are worth: removes barriers and turns rules around, one at a time, and expects a test to fail.
cuda-break: lib $(CU_KIT)/.fetched
	@python3 $(CU)/tests/break.py
