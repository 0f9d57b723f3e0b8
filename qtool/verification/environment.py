"""Describe the machine and the libraries of a run."""

import platform
from importlib.metadata import version
from pathlib import Path


def environment() -> dict[str, str | int | list[str]]:
    """Versions and the processor."""
    from qtool.runtime.ort_options import default_threads

    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
        "onnx": version("onnx"),
        "onnx_ir": version("onnx-ir"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": default_threads(),
        "isa": instruction_sets(),
    }


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The vector extensions that decide which integer kernels run, empty where unknown."""
    words = _cpuinfo("flags").split() or _cpuinfo("Features").split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
    return [word for word in wanted if word in words]
