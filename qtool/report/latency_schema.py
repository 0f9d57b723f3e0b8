"""The parts of the report about latency."""

from qtool.report.schema import Number, Part


class RuntimeLatency(Part):
    """Both files in one runtime, timed in turn: medians for one batch.

    A file that the runtime cannot run has no time, and `reason` says why.
    """

    runtime: str
    version: str | None = None
    threads: int
    batch: int
    float_ms: Number | None = None
    quantized_ms: Number | None = None
    runs: int | None = None
    reason: str | None = None

    @property
    def speedup(self) -> float | None:
        """Float time by quantized time; None where one was not timed."""
        if self.float_ms is None or self.quantized_ms is None:
            return None
        return self.float_ms / self.quantized_ms


class FastestPair(Part):
    """The runtimes that are fastest at one number of threads and one batch size.

    `speedup` compares the file with the fastest float runtime, not with the one it runs in.
    """

    threads: int
    batch: int
    float_runtime: str
    float_ms: Number
    quantized_runtime: str
    quantized_ms: Number
    speedup: Number


class RemoteMachine(Part):
    """The machine of `latency.runner`, on which `runtimes` were timed."""

    name: str
    cpu: str
    cores: int
    python: str


class KernelTime(Part):
    """The time of one kernel, such as QLinearConv, in one run of the file, over all its nodes."""

    op: str
    nodes: int
    ms: Number


class NodeTime(Part):
    """The time of one node of the executed graph in one run of the file."""

    name: str
    op: str
    ms: Number


class Latency(Part):
    """Medians of paired runs; `speedup` is their ratio.

    The first six are of ONNX Runtime on the machine of the run; `runtimes` has those that the
    recipe names, on `machine` where that is another one. `kernels` and `nodes` are of the quantized
    file, measured with ONNX Runtime's profiler, slowest first; `nodes` are the slowest ones.
    """

    threads: int
    batch: int
    float_ms: Number
    quantized_ms: Number
    speedup: Number
    runs: int
    kernels: list[KernelTime] | None = None
    nodes: list[NodeTime] | None = None
    machine: RemoteMachine | None = None
    runtimes: list[RuntimeLatency] | None = None
    fastest: list[FastestPair] | None = None

    @property
    def checked(self) -> "Latency | RuntimeLatency":
        """The times that gates are compared with: the first row of another machine, or these."""
        return self.runtimes[0] if self.machine is not None and self.runtimes else self
