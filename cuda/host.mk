# The path from C through liblava to the driver, with no GPU: `make cuda-host-test`. libcuda is fake_driver.cpp there, over the emulated
# kernels. On a machine with a GPU and CUDA, `make cuda-path` runs the same program against the real one.

CUDA_TOOLKIT := target/cuda-toolkit/nvidia/cu13
CUDA_TESTS   := target/cuda-tests
CUDA_LIB     := target/cuda-lib/capi/liblava.a
# One architecture: the fake driver does not look into the images, so what `make cuda-path` needs is what it should be.
CUDA_TEST_ARCHS ?= 90a
CUDA_HEADERS := $(wildcard cuda/*.h cuda/*.cuh cuda/emu/*.h include/*.h)
CUDA_FLAGS   := -std=c++17 -O1 -g -Wall -fPIC -DLAVA_EMU -I cuda -I cuda/emu -isystem $(CUDA_TOOLKIT)/include

.PHONY: cuda-host-test cuda-path cuda-lib cuda-lib-plain

# nvcc and the CUDA headers, without an install of CUDA: 200 MB.
$(CUDA_TOOLKIT)/bin/nvcc:
	python3 -m pip install --quiet --no-deps --target target/cuda-toolkit -r cuda/requirements.txt
	@touch -c $@

# Each .cu by itself, as nvcc compiles it, so that two may have helpers of one name: under emulation each has a namespace of its own.
$(CUDA_TESTS)/%.o: cuda/%.cu $(CUDA_HEADERS) $(CUDA_TOOLKIT)/bin/nvcc
	@mkdir -p $(CUDA_TESTS)
	$(CXX) $(CUDA_FLAGS) -Wno-unknown-pragmas -Dlava=lava_in_$* -x c++ -c $< -o $@
$(CUDA_TESTS)/%.o: cuda/tests/%.cpp $(CUDA_HEADERS) $(CUDA_TOOLKIT)/bin/nvcc
	@mkdir -p $(CUDA_TESTS)
	$(CXX) $(CUDA_FLAGS) -c $< -o $@
$(CUDA_TESTS)/emu.o: cuda/emu/emu.cpp $(CUDA_HEADERS) $(CUDA_TOOLKIT)/bin/nvcc
	@mkdir -p $(CUDA_TESTS)
	$(CXX) $(CUDA_FLAGS) -c $< -o $@

CUDA_KERNELS := $(patsubst cuda/%.cu,$(CUDA_TESTS)/%.o,$(wildcard cuda/*.cu))
$(CUDA_TESTS)/fake/libcuda.so.1: $(CUDA_TESTS)/fake_driver.o $(CUDA_TESTS)/emu.o $(CUDA_KERNELS)
	@mkdir -p $(@D)
	$(CXX) -shared -Wl,-Bsymbolic -Wl,-soname,libcuda.so.1 $^ -ldl -o $@
# A driver that is too old: it has nothing but cuInit.
$(CUDA_TESTS)/old/libcuda.so.1: cuda/tests/old_driver.c
	@mkdir -p $(@D)
	$(CC) -shared -fPIC -Wl,-soname,libcuda.so.1 $< -o $@

cuda-lib: $(CUDA_TOOLKIT)/bin/nvcc
	@echo "building liblava with CUDA for sm_$(CUDA_TEST_ARCHS) (a minute, the first time)"
	@LAVA_REQUIRE_CUDA=1 LAVA_CUDA_ARCHS=$(CUDA_TEST_ARCHS) $(CARGO) rustc --quiet --lib --profile capi --features cuda \
		--crate-type staticlib --target-dir target/cuda-lib
$(CUDA_TESTS)/path: cuda/tests/path.c include/lava.h include/lava_cuda.h cuda-lib
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -I include -I cuda $< $(CUDA_LIB) $(LIBS) -o $@

# As where there is no nvcc.
cuda-lib-plain:
	@NVCC= $(CARGO) rustc --quiet --lib --features cuda --crate-type staticlib --target-dir target/cuda-lib-plain
$(CUDA_TESTS)/path_plain: cuda/tests/path.c include/lava.h include/lava_cuda.h cuda-lib-plain
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -I include -I cuda $< target/cuda-lib-plain/debug/liblava.a $(LIBS) -o $@

cuda-host-test: $(CUDA_TESTS)/path_plain $(CUDA_TESTS)/path $(CUDA_TESTS)/fake/libcuda.so.1 $(CUDA_TESTS)/old/libcuda.so.1
	LD_LIBRARY_PATH=$(CUDA_TESTS)/fake $(CUDA_TESTS)/path
	@# A GPU of compute capability 8.6 has less shared memory: other kernels are taken.
	FAKE_SHARED=101376 LD_LIBRARY_PATH=$(CUDA_TESTS)/fake $(CUDA_TESTS)/path
	LD_LIBRARY_PATH=$(CUDA_TESTS)/old $(CUDA_TESTS)/path init LAVA_ERR_DRIVER cuCtxGetCurrent
	FAKE_FAIL=init LD_LIBRARY_PATH=$(CUDA_TESTS)/fake $(CUDA_TESTS)/path init LAVA_ERR_DRIVER CUDA_ERROR_NO_DEVICE
	LD_LIBRARY_PATH=$(CUDA_TESTS)/fake $(CUDA_TESTS)/path_plain init LAVA_ERR_UNSUPPORTED "built without nvcc"
	@# No libcuda at all can only be seen where there is none.
	@ldconfig -p | grep -q libcuda.so || { set -x; $(CUDA_TESTS)/path init LAVA_ERR_DRIVER libcuda; }

cuda-path: $(CUDA_TESTS)/path
	$(CUDA_TESTS)/path
