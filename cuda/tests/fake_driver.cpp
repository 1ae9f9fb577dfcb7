// A libcuda.so.1 for machines without a GPU: the functions that liblava and path.c use, over the emulated kernels. "Device memory" is
// memory of the host. Where the real driver is lenient or lazy, this one is not:
//
// - a launch runs when its stream is waited for, with the arguments as they were when it was requested;
// - while a stream is captured, whatever a capture forbids is an error;
// - kernels belong to a loaded module and to the context they were loaded in, and dynamic shared memory to what was allowed for it;
// - after each piece of memory there is a guard, which is checked when it is freed.
//
// FAKE_PTX=cuobjdump (where it is): kernels are taken from the images that are loaded, as PTX, and that is run instead.
// FAKE_PROCESSORS=n: of the GPU; three by default.
// FAKE_FAIL=init, load, "third load", launch: that function fails. FAKE_SHARED=n: bytes of shared memory that a block may have.
// FAKE_ALONE: blocks may not wait for each other. FAKE_FEWER=n: no more than n may, fewer than it reports.
#include "device.cuh"
#include "plan_attention.h"
#include "ptx/ptx.h"

#include <cuda.h>
#include <dlfcn.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#undef cuMemAlloc
#undef cuMemFree
#undef cuMemcpyHtoD
#undef cuMemcpyDtoH
#undef cuMemcpyDtoHAsync
#undef cuMemsetD8Async
#undef cuStreamDestroy
#undef cuStreamBeginCapture
#undef cuGraphInstantiateWithFlags
#define API extern "C" __attribute__((visibility("default"))) CUresult

struct CUctx_st {};
struct CUmod_st {
    CUcontext owner;
    std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
    ptx::Module compiled;
};
struct CUfunc_st {
    CUmodule module;
    std::string name;
    void *kernel;
    const ptx::Function *compiled; // that instead
    size_t argument_bytes;
    int own_shared, max_dynamic = 48 << 10;
};

namespace {

struct Call {
    /// A copy or memset instead of a kernel.
    std::function<void()> other;
    CUfunction function = nullptr;
    emu::Launch launch;
    std::vector<uint64_t> arguments;
};

} // namespace

struct CUstream_st {
    std::vector<Call> calls;
    bool capturing = false;
};
struct CUgraph_st {
    std::vector<Call> calls;
};
struct CUgraphExec_st {
    std::vector<Call> calls;
};

namespace {

CUctx_st only_context;
thread_local CUcontext current = nullptr;
bool initialised = false;
int n_capturing = 0, n_modules = 0;
CUstream_st default_stream;
std::map<void *, size_t> memory;
constexpr size_t GUARD = 256;
constexpr int STATIC_SHARED = 1 << 10; // of a kernel that asks for more, in addition to its own
unsigned n_run = 0;
std::map<std::string, ptx::Counts> *counts = nullptr;

bool asked_to_fail(const char *what) {
    const char *const fail = getenv("FAKE_FAIL");
    return fail && strcmp(fail, what) == 0;
}
int n_processors() {
    const char *const n = getenv("FAKE_PROCESSORS");
    return n ? atoi(n) : 3;
}
int shared_of_block() {
    const char *const bytes = getenv("FAKE_SHARED");
    return bytes ? atoi(bytes) : 227 << 10;
}
CUstream_st *stream_of(CUstream stream) { return stream ? stream : &default_stream; }
bool begins(const std::string &name, const char *with) { return name.rfind(with, 0) == 0; }

/// What a kernel is launched with, by the beginning of its name.
struct Family {
    const char *begins;
    size_t bytes;
    void (*run)(const Call &);
};
template <class Args> void call(const Call &c) {
    Args args;
    memcpy(&args, c.arguments.data(), sizeof args);
    const auto kernel = reinterpret_cast<void (*)(Args)>(c.function->kernel);
    emu::launch(c.launch, [&] { kernel(args); });
}

template <class Args> Family family(const char *begins) { return {begins, sizeof(Args), call<Args>}; }
const Family families[] = {
    family<lava_score_args>("lava_score_"),           family<lava_attend_args>("lava_attend_"),
    family<lava_score_args>("lava_stats_sum"),       family<lava_cuda_preference_args>("lava_stats_preference"),
    family<lava_cuda_mean_args>("lava_mean_"),
    family<lava_upload_many_args>("lava_upload_many"), family<lava_upload_args>("lava_upload"),
    family<lava_cuda_entropy_args>("lava_entropy_"),
    family<lava_cuda_share_args>("lava_share_layers"), family<lava_cuda_select_args>("lava_select_"),
    family<lava_cuda_global_args>("lava_global_begin"), family<lava_cuda_global_args>("lava_share_globally"),
    family<lava_cuda_compact_args>("lava_compact_"),  family<lava_cuda_cascade_args>("lava_cascade_"),
};
const Family *family_of(const std::string &name) {
    for (const Family &f : families)
        if (begins(name, f.begins)) return &f;
    return nullptr;
}

void run(const std::vector<Call> &calls) {
    for (Call c : calls) {
        if (c.other) { c.other(); continue; }
        c.launch.seed = ++n_run;
        if (!c.function->compiled) { family_of(c.function->name)->run(c); continue; }
        const emu::Launch &l = c.launch;
        ptx::launch(*c.function->compiled, {{l.grid.x, l.grid.y, l.grid.z}, {l.block.x, l.block.y, l.block.z}, l.shared_bytes, l.seed, l.resident,
                     counts ? &(*counts)[c.function->name] : nullptr},
                    c.arguments.data(), c.function->argument_bytes);
    }
}

/// The kernels of an image. cuobjdump takes their PTX out of it.
ptx::Module compiled_of(const uint8_t *image) {
    uint16_t head;
    uint64_t behind;
    memcpy(&head, image + 6, sizeof head), memcpy(&behind, image + 8, sizeof behind);
    std::string folder = std::filesystem::temp_directory_path() / "lava_ptx_XXXXXX";
    if (!mkdtemp(&folder[0])) emu::fail("no folder for PTX");
    std::ofstream(folder + "/image.fatbin", std::ios::binary).write(reinterpret_cast<const char *>(image), std::streamsize(head + behind));
    const std::string tool = std::filesystem::absolute(getenv("FAKE_PTX"));
    if (system(("cd " + folder + " && '" + tool + "' -xptx all image.fatbin >log 2>&1").c_str()) != 0) emu::fail("%s: see %s/log", tool.c_str(), folder.c_str());
    ptx::Module all = ptx::read_folder(folder);
    if (all.empty()) emu::fail("no PTX in an image");
    std::filesystem::remove_all(folder);
    return all;
}

} // namespace

API cuInit(unsigned) {
    if (asked_to_fail("init")) return CUDA_ERROR_NO_DEVICE;
    initialised = true;
    return CUDA_SUCCESS;
}
API cuGetErrorName(CUresult code, const char **name) {
#define NAME(x)                                                                                                            \
    if (code == x) return *name = #x, CUDA_SUCCESS;
    NAME(CUDA_ERROR_INVALID_VALUE) NAME(CUDA_ERROR_NO_DEVICE) NAME(CUDA_ERROR_NO_BINARY_FOR_GPU) NAME(CUDA_ERROR_NOT_FOUND)
    NAME(CUDA_ERROR_ILLEGAL_ADDRESS) NAME(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE) NAME(CUDA_ERROR_NOT_INITIALIZED) NAME(CUDA_ERROR_INVALID_CONTEXT)
#undef NAME
    return *name = nullptr, CUDA_ERROR_INVALID_VALUE;
}
API cuDeviceGet(CUdevice *device, int) { return *device = 0, CUDA_SUCCESS; }
API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) { return *context = &only_context, CUDA_SUCCESS; }
API cuCtxSetCurrent(CUcontext context) { return current = context, CUDA_SUCCESS; }
API cuCtxGetCurrent(CUcontext *context) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    return *context = current, CUDA_SUCCESS;
}
API cuCtxGetDevice(CUdevice *device) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    return *device = 0, CUDA_SUCCESS;
}
API cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
    if (device != 0) return CUDA_ERROR_INVALID_VALUE;
    if (which == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) *value = n_processors();
    else if (which == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) *value = shared_of_block();
    else if (which == CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH) *value = getenv("FAKE_ALONE") == nullptr;
    else return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction, int threads, size_t shared) {
    if (threads != LAVA_CUDA_SELECT_THREADS || shared != 0) return CUDA_ERROR_INVALID_VALUE;
    return *blocks = 2, CUDA_SUCCESS;
}

API cuModuleLoadData(CUmodule *module, const void *image) {
    if (asked_to_fail("load") || (asked_to_fail("third load") && n_modules == 2)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (!current || n_capturing) return CUDA_ERROR_INVALID_CONTEXT;
    uint32_t magic;
    memcpy(&magic, image, 4);
    if (magic != 0xba55ed50 || uintptr_t(image) % 16 != 0) return CUDA_ERROR_INVALID_IMAGE;
    n_modules++;
    *module = new CUmod_st{current, {}, {}};
    if (getenv("FAKE_PTX")) (*module)->compiled = compiled_of(static_cast<const uint8_t *>(image));
    return CUDA_SUCCESS;
}
API cuModuleUnload(CUmodule module) {
    if (module->owner != current || n_capturing) return CUDA_ERROR_INVALID_CONTEXT;
    n_modules--;
    delete module;
    return CUDA_SUCCESS;
}
/// What is loaded now: path.c checks that nothing stays loaded.
extern "C" __attribute__((visibility("default"))) int fake_modules() { return n_modules; }

/// Counts what compiled kernels ask of the hardware from now on; of those since the last time, calls `tell`.
extern "C" __attribute__((visibility("default"))) void fake_counts(void (*tell)(const char *kernel, const ptx::Counts *counts)) {
    for (auto &each : counts ? *counts : std::map<std::string, ptx::Counts>()) tell(each.first.c_str(), &each.second);
    delete counts;
    counts = new std::map<std::string, ptx::Counts>;
}

API cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    auto &found = module->functions[name];
    if (getenv("FAKE_PTX")) {
        const auto compiled = module->compiled.find(name);
        if (compiled == module->compiled.end()) return CUDA_ERROR_NOT_FOUND;
        const ptx::Function &f = *compiled->second;
        found.reset(new CUfunc_st{module, name, nullptr, &f, f.parameter_bytes, int(f.shared_bytes)});
        return *function = found.get(), CUDA_SUCCESS;
    }
    // The images are not looked into: every kernel is in the first module that is asked.
    Dl_info here;
    dladdr(&only_context, &here);
    void *const self = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD), *const kernel = dlsym(self, name);
    const Family *const kind = family_of(name);
    if (!kernel || !kind) return CUDA_ERROR_NOT_FOUND;
    found.reset(new CUfunc_st{module, name, kernel, nullptr, kind->bytes, STATIC_SHARED});
    return *function = found.get(), CUDA_SUCCESS;
}
API cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
    if (which != CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    return *value = function->own_shared, CUDA_SUCCESS;
}
API cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    if (value < 0 || value + function->own_shared > shared_of_block()) return CUDA_ERROR_INVALID_VALUE;
    return function->max_dynamic = value, CUDA_SUCCESS;
}
namespace {
CUresult launch(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream to,
                void **parameters, unsigned resident) {
    if (asked_to_fail("launch")) return CUDA_ERROR_ILLEGAL_ADDRESS;
    if (function->module->owner != current) return CUDA_ERROR_INVALID_CONTEXT;
    const bool fits = x > 0 && y > 0 && z > 0 && y <= 65535 && z <= 65535 && x <= INT32_MAX && bx * by * bz > 0 && bx * by * bz <= 1024;
    if (!fits || int(shared) > function->max_dynamic) return CUDA_ERROR_INVALID_VALUE;
    Call c;
    c.function = function;
    c.launch.grid = {x, y, z};
    c.launch.block = {bx, by, bz};
    c.launch.shared_bytes = shared;
    c.launch.resident = resident;
    c.arguments.resize((function->argument_bytes + 7) / 8);
    memcpy(c.arguments.data(), parameters[0], function->argument_bytes);
    stream_of(to)->calls.push_back(std::move(c));
    return CUDA_SUCCESS;
}
} // namespace
API cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   CUstream to, void **parameters, void **extra) {
    if (extra) return CUDA_ERROR_INVALID_VALUE;
    // Blocks that wait for each other would hang here if more than one had to.
    return launch(function, x, y, z, bx, by, bz, shared, to, parameters, 1);
}
API cuLaunchCooperativeKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                              unsigned shared, CUstream to, void **parameters) {
    const char *const fewer = getenv("FAKE_FEWER");
    const unsigned most = fewer ? unsigned(atoi(fewer)) : 2u * unsigned(n_processors());
    if (x * y * z > most || getenv("FAKE_ALONE")) return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    return launch(function, x, y, z, bx, by, bz, shared, to, parameters, 0);
}

API cuStreamCreate(CUstream *stream, unsigned) { return *stream = new CUstream_st, CUDA_SUCCESS; }
API cuStreamDestroy_v2(CUstream stream) { return delete stream, CUDA_SUCCESS; }
API cuStreamSynchronize(CUstream stream) {
    if (n_capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    CUstream_st *const s = stream_of(stream);
    const std::vector<Call> calls = std::move(s->calls);
    s->calls.clear();
    run(calls);
    return CUDA_SUCCESS;
}
API cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode) {
    if (!stream || stream->capturing || !stream->calls.empty()) return CUDA_ERROR_INVALID_VALUE;
    n_capturing++;
    return stream->capturing = true, CUDA_SUCCESS;
}
API cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    n_capturing--;
    stream->capturing = false;
    *graph = new CUgraph_st{std::move(stream->calls)};
    stream->calls.clear();
    return CUDA_SUCCESS;
}
API cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long) {
    return *exec = new CUgraphExec_st{graph->calls}, CUDA_SUCCESS;
}
API cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    auto &calls = stream_of(stream)->calls;
    calls.insert(calls.end(), exec->calls.begin(), exec->calls.end());
    return CUDA_SUCCESS;
}
API cuGraphDestroy(CUgraph graph) { return delete graph, CUDA_SUCCESS; }
API cuGraphExecDestroy(CUgraphExec exec) { return delete exec, CUDA_SUCCESS; }

API cuMemAllocManaged(CUdeviceptr *at, size_t bytes, unsigned) {
    if (n_capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    const size_t all = (bytes + GUARD + 255) / 256 * 256;
    uint8_t *const p = static_cast<uint8_t *>(aligned_alloc(256, all));
    memset(p, 0xa5, all);
    memory[p] = bytes;
    return *at = CUdeviceptr(p), CUDA_SUCCESS;
}
API cuMemHostAlloc(void **at, size_t bytes, unsigned) { return cuMemAllocManaged(reinterpret_cast<CUdeviceptr *>(at), bytes, CU_MEM_ATTACH_GLOBAL); }
API cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) { return cuMemAllocManaged(at, bytes, CU_MEM_ATTACH_GLOBAL); }
API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    if (n_capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return memcpy(reinterpret_cast<void *>(to), from, bytes), CUDA_SUCCESS;
}
API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    if (n_capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return memcpy(to, reinterpret_cast<const void *>(from), bytes), CUDA_SUCCESS;
}
static CUresult later(CUstream stream, std::function<void()> what) {
    Call c;
    c.other = std::move(what);
    stream_of(stream)->calls.push_back(std::move(c));
    return CUDA_SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return later(stream, [=] { memcpy(to, reinterpret_cast<const void *>(from), bytes); });
}
API cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
    return later(stream, [=] { memset(reinterpret_cast<void *>(at), value, bytes); });
}
API cuMemFree_v2(CUdeviceptr at) {
    uint8_t *const p = reinterpret_cast<uint8_t *>(at);
    const size_t bytes = memory.at(p);
    for (size_t i = 0; i < GUARD; i++)
        if (p[bytes + i] != 0xa5) emu::fail("byte %zu after %zu bytes of device memory was written", i, bytes);
    memory.erase(p);
    free(p);
    return CUDA_SUCCESS;
}
API cuMemFreeHost(void *at) { return cuMemFree_v2(CUdeviceptr(at)); }
