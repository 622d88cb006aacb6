"""A trace as torch's profiler writes it on CUDA, made up: every kernel's time, launch and place are known exactly.

One step is `STEP` microseconds. Each of two blocks launches its kernels in order, each at its own moment on the host;
the host then waits for the device. Times are microseconds.
"""

from __future__ import annotations

from typing import Any

HOST, THREAD, GPU = 4242, 4242, 0
STEP = 1000.0
ORIGIN = 4470340366992.287
"""torch's clocks start long ago, so times have little room behind the decimal point."""
Event = dict[str, Any]

KERNELS = {
    "projection": ("sm90_xmma_gemm_bf16", 40.0),
    "attention": ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>(Flash_fwd_params)", 60.0),
    "norm": ("void vectorized_layer_norm_kernel<float>(int)", 10.0),
    "mlp": ("sm90_xmma_gemm_bf16", 90.0),
    "score": ("void reduce_kernel<512>(ReduceOp)", 5.0),
    "select": ("void radixSort<float>(TopK)", 15.0),
    "cut": ("void index_select_kernel<4>(Info)", 8.0),
}
"""The kernel of each part and how long it takes."""
OPS = {
    "projection": "aten::addmm",
    "attention": "aten::_scaled_dot_product_flash_attention",
    "norm": "aten::native_layer_norm",
    "mlp": "aten::addmm",
    "score": "aten::linalg_vector_norm",
    "select": "aten::topk",
    "cut": "aten::index_select",
}
DEVICE = {
    "id": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "totalGlobalMem": 84929347584,
    "computeMajor": 9,
    "computeMinor": 0,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerMultiprocessor": 2048,
    "regsPerBlock": 65536,
    "regsPerMultiprocessor": 65536,
    "warpSize": 32,
    "sharedMemPerBlock": 49152,
    "sharedMemPerMultiprocessor": 233472,
    "numSms": 132,
    "sharedMemPerBlockOptin": 232448,
}


class Writer:
    """Collects events; ids and correlations count up."""

    def __init__(self, begin: float = ORIGIN) -> None:
        self.events: list[Event] = [
            {"ph": "M", "name": "process_name", "pid": HOST, "tid": 0, "ts": begin, "args": {"name": "python"}},
            {"ph": "M", "name": "process_labels", "pid": HOST, "tid": 0, "ts": begin, "args": {"labels": "CPU"}},
            {"ph": "M", "name": "process_name", "pid": GPU, "tid": 0, "ts": begin, "args": {"name": "python"}},
            {"ph": "M", "name": "process_labels", "pid": GPU, "tid": 0, "ts": begin, "args": {"labels": "GPU 0"}},
        ]
        self.begin, self.number = begin, 0

    def host(self, category: str, name: str, at: float, length: float, **arguments: Any) -> None:
        self.number += 1
        self.events.append(
            {
                "ph": "X",
                "cat": category,
                "name": name,
                "pid": HOST,
                "tid": THREAD,
                "ts": round(self.begin + at, 3),
                "dur": length,
                "args": {"External id": self.number, **arguments},
            }
        )

    def kernel(
        self, name: str, at: float, length: float, correlation: int, stream: int = 7, category: str = "kernel"
    ) -> None:
        arguments = {"External id": self.number, "device": 0, "stream": stream, "correlation": correlation}
        shape = {"grid": [132, 1, 1], "block": [256, 1, 1], "blocks per SM": 1.0, "est. achieved occupancy %": 12}
        self.events.append(
            {
                "ph": "X",
                "cat": category,
                "name": name,
                "pid": GPU,
                "tid": stream,
                "ts": round(self.begin + at, 3),
                "dur": length,
                "args": arguments | (shape if category == "kernel" else {"bytes": 4096}),
            }
        )


def step(out: Writer, number: int, pruned: bool, delay: float = 20.0) -> None:
    """One step of two blocks; `delay` is how long after its launch a kernel begins, where the device is free."""
    start = (number - 1) * (STEP + 100)
    out.host("user_annotation", f"ProfilerStep#{number}", start, STEP)
    host, device = start + 10.0, start
    for block in (1, 2):
        parts = ["norm", "projection", "attention", "mlp"]
        parts += ["score", "select", "cut"] if pruned and block == 1 else []
        out.host("cpu_op", f"repshift/block {block}", host, 22.0 * len(parts) + 2)
        host += 1
        for part in parts:
            out.host("cpu_op", f"repshift/{part}", host, 20.0)
            out.host("cpu_op", OPS[part], host + 2, 16.0)
            correlation = 1000 * number + out.number
            out.host("cuda_runtime", "cudaLaunchKernel", host + 5, 8.0, correlation=correlation)
            out.events[-1]["args"]["External id"] = out.number - 1
            out.number -= 1
            name, length = KERNELS[part]
            device = max(device, host + 5 + delay)
            out.kernel(name, device, length, correlation)
            device += length
            host += 22.0
        host += 3
    out.host("cuda_runtime", "cudaDeviceSynchronize", host, start + STEP - host - 5, correlation=0)


def trace(steps: int = 2, pruned: bool = False, delay: float = 20.0) -> dict[str, Any]:
    """The whole trace."""
    out = Writer()
    for number in range(1, steps + 1):
        step(out, number, pruned, delay)
    return {"schemaVersion": 1, "deviceProperties": [DEVICE], "traceEvents": out.events}
