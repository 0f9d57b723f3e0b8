"""The times in every runtime as rows of tables, the same in every format."""

from dataclasses import dataclass

import qtool.report.render.formatting as formatting
from qtool.report.latency_schema import RuntimeLatency
from qtool.report.report import Report

HEAD = ("runtime", "setting", "float", "quantized", "")


@dataclass(frozen=True)
class RuntimeRow:
    """One runtime at one setting; a file that it cannot run has no time but a reason.

    `slow` is true where the file is slower than the float model.
    """

    runtime: str
    setting: str
    float_ms: str
    quantized_ms: str
    remark: str
    slow: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of a table, in the order of HEAD."""
        return (self.runtime, self.setting, self.float_ms, self.quantized_ms, self.remark)


def title(report: Report) -> str:
    """Return the heading of the table: the machine, where it is not that of the run."""
    machine = report.latency.machine if report.latency is not None else None
    if machine is None:
        return "Latency by runtime"
    cores = f"{machine.cores} core{'s' if machine.cores != 1 else ''}"
    return formatting.clean(f"Latency by runtime on {machine.name}: {machine.cpu}, {cores}")


def rows(report: Report) -> list[RuntimeRow]:
    """Return the rows of the table; empty where the recipe names no runtimes."""
    timed = report.latency.runtimes if report.latency is not None else None
    return [_row(row) for row in timed or ()]


def _row(row: RuntimeLatency) -> RuntimeRow:
    name = f"{row.runtime} {row.version}" if row.version else row.runtime
    both = (row.float_ms, row.quantized_ms)
    times = ["" if ms is None else formatting.milliseconds(ms) for ms in both]
    faster = "" if row.speedup is None else formatting.ratio(row.speedup, "faster", "slower")
    return RuntimeRow(
        runtime=formatting.clean(name),
        setting=formatting.conditions(row),
        float_ms=times[0],
        quantized_ms=times[1],
        remark=formatting.clean(row.reason or faster),
        slow=row.speedup is None or row.speedup < 1,
    )


def fastest(report: Report) -> list[tuple[str, bool]]:
    """Return a sentence on the fastest float runtime of each setting; True: the file is slower."""
    pairs = report.latency.fastest if report.latency is not None else None
    return [
        (
            formatting.clean(
                f"{formatting.conditions(pair)}: fastest float {pair.float_runtime}, "
                f"{formatting.milliseconds(pair.float_ms)}; fastest quantized "
                f"{pair.quantized_runtime}, {formatting.milliseconds(pair.quantized_ms)}, "
                f"{formatting.ratio(pair.speedup, 'faster', 'slower')}"
            ),
            pair.speedup < 1,
        )
        for pair in pairs or ()
    ]
