"""liblava by ctypes, with the structs as the headers have them, and what it runs on: a GPU, or tests/fake_driver.cpp."""
import ctypes
import math
import pathlib
import re
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
C_TYPES = {
    "uint8_t": ctypes.c_uint8, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t, "float": ctypes.c_float, "double": ctypes.c_double, "lava_status": ctypes.c_int32, "lava_dtype": ctypes.c_int32,
}  # fmt: skip


def read_headers():
    """Structs and constants of lava.h and lava_cuda.h. A struct's first member is its size."""
    structs, constants = {}, {}
    for name in ("lava.h", "lava_cuda.h"):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", (ROOT / "include" / name).read_text(), flags=re.S)
        for key, value in re.findall(r"#define (LAVA_\w+) (\d+)", text):
            constants[key] = int(value)
        for struct, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, flags=re.S):
            fields = []
            for line in filter(None, (" ".join(line.split()) for line in body.split(";"))):
                kind, field = re.fullmatch(r"(.*?)(\w+)", line).groups()
                fields.append((field, ctypes.c_void_p if "*" in kind else (C_TYPES | structs)[kind.split()[-1]]))
            structs[struct] = type(struct, (ctypes.Structure,), {"_fields_": fields})
    return structs, constants


class Library:
    """Calls that raise, structs by their names without lava_, device memory by torch."""

    def __init__(self, path, gpu):
        self.c = ctypes.CDLL(str(path))
        self.c.lava_cuda_context_size.restype = ctypes.c_size_t
        self.structs, self.constants = read_headers()
        self.gpu = gpu
        room = ctypes.create_string_buffer(self.c.lava_cuda_context_size() + 64)
        self.context = ctypes.c_void_p((ctypes.addressof(room) + 63) // 64 * 64)
        self.room = room
        self.status = gpu.full(1, -1, torch.int64)
        self.call("cuda_init", self.context, self.c.lava_cuda_context_size())

    def struct(self, name, **values):
        made = self.structs["lava_" + name](**values)
        made.struct_size = ctypes.sizeof(made)
        return made

    def array(self, items):
        return (type(items[0]) * len(items))(*items)

    def call(self, name, *arguments):
        error = self.struct("error")
        converted = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        converted = [ctypes.c_size_t(a) if isinstance(a, int) else a for a in converted]
        converted = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in converted]
        if getattr(self.c, "lava_" + name)(*converted, ctypes.byref(error)) != 0:
            text = [ctypes.string_at(p).decode() if p else "" for p in (error.message, error.argument)]
            raise RuntimeError(f"lava_{name}: {text[0]} ({text[1]})")

    def launch(self, name, *arguments):
        """A call that ends with a status word and a stream."""
        self.call(name, *arguments, self.status, ctypes.c_void_p(self.gpu.stream()))

    def size(self, name, *arguments):
        size = ctypes.c_size_t()
        self.call(name, *arguments, ctypes.byref(size))
        return size.value

    def finish(self):
        """Waits, and raises what the kernels found."""
        self.gpu.wait()
        word = self.status.cpu().item() % 2**64
        self.status.fill_(-1)
        self.call("cuda_result", ctypes.c_uint64(word), None)

    def tensor(self, x, starts=None):
        """[rows, heads, dim] of torch; or ragged rows [rows, dim] with each head's first row."""
        strides = x.stride() if starts is None else (x.stride(0), 0, x.stride(1))
        last = sum((n - 1) * s for n, s in zip(x.shape, x.stride()))
        return self.struct(
            "tensor", dtype=DTYPES[x.dtype], data=x.data_ptr(), size=(last + 1) * x.element_size(),
            stride_token=strides[0], stride_head=strides[1], stride_dim=strides[2], row_start=starts.data_ptr() if starts is not None else None,
        )  # fmt: skip


class Cuda:
    device = "cuda"

    def __init__(self):
        torch.cuda.init()
        torch.zeros(1, device=self.device)  # makes the device's context the thread's

    def name(self):
        return torch.cuda.get_device_name()

    def stream(self):
        return torch.cuda.current_stream().cuda_stream

    def second_stream(self):
        """Before the current one where both have work: what goes there is small."""
        return torch.cuda.Stream(priority=-1)

    def wait(self):
        torch.cuda.synchronize()

    def full(self, n, value, dtype):
        return torch.full((n,), value, dtype=dtype, device=self.device)

    def sets(self, n_bytes):
        """Enough inputs of this many bytes that none is still in the L2 cache when its turn comes again."""
        return range(max(4, math.ceil(4 * torch.cuda.get_device_properties().L2_cache_size / n_bytes)))

    def timed(self, calls, rounds=10, restore=lambda: None):
        """Seconds of one of the calls, which go round. As a graph: Python is not measured. restore: what they have changed.

        The best of three times or more, a tenth of a second in all: a GPU that was idle takes a while to raise its clocks.
        """
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        spans = []
        while len(spans) < 3 or sum(spans) < 0.1:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            restore()
            begin.record()
            for _ in range(rounds):
                graph.replay()
            end.record()
            end.synchronize()
            spans.append(begin.elapsed_time(end) / 1e3)
        return min(spans) / rounds / len(calls)


class Fake(Cuda):
    device = "cpu"

    def __init__(self):
        self.c = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        for code in (self.c.cuInit(0), self.c.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), self.c.cuCtxSetCurrent(context)):
            assert code == 0, code

    def name(self):
        return "no GPU, so no times"

    def stream(self):
        return None

    def second_stream(self):
        return None

    def wait(self):
        assert self.c.cuStreamSynchronize(None) == 0

    def sets(self, n_bytes):
        return range(2)

    def timed(self, calls, rounds=10, restore=lambda: None):
        restore()
        begun = time.perf_counter()
        for call in calls:
            call()
        self.wait()
        return (time.perf_counter() - begun) / len(calls)
