"""Describe the machine and the libraries of a run."""

import platform
from importlib.metadata import version
from pathlib import Path


def environment() -> dict[str, str | int | list[str]]:
    """Return the versions of Python and the libraries, and a description of the processor."""
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
    """Return the first value of a key in /proc/cpuinfo, or "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return the vector extensions that decide which integer kernels run; empty where unknown."""
    # Linux names them "flags" on x86 and "Features" on ARM.
    flags = _cpuinfo("flags").split() or _cpuinfo("Features").split()
    relevant = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
    return [name for name in relevant if name in flags]
