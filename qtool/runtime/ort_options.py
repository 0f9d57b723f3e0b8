"""How every ONNX Runtime session here is set up; light, since the verifying child needs no more."""

import os
from typing import Any

LEVELS = {"none": 0, "basic": 1, "extended": 2, "all": 99}


def default_threads() -> int:
    """Physical cores that this process may use."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable or 1))


def session_options(threads: int, level: str = "all") -> Any:
    """Session options that keep idle threads from spinning against each other."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel(LEVELS[level])
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
