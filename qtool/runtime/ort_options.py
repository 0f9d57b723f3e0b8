"""Options of every ONNX Runtime session. Imports neither torch nor the runtime at the top."""

import os
from typing import Any

# GraphOptimizationLevel by name; 99 is ORT_ENABLE_ALL.
LEVELS = {"none": 0, "basic": 1, "extended": 2, "all": 99}


# The newest version of the file format that every supported ONNX Runtime loads.
IR_VERSION = 10


def default_threads() -> int:
    """Return the number of physical cores that this process may use."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable or 1))


def session_options(threads: int, level: str = "all") -> Any:
    """Create session options whose idle threads do not spin.

    Args:
        threads: intra-op threads.
        level: graph optimization, one of LEVELS.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: errors are raised anyhow
    options.graph_optimization_level = ort.GraphOptimizationLevel(LEVELS[level])
    # Sessions in turn (float, quantized) would wait for the other's spinning threads.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
