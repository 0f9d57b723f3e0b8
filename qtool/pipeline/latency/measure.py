"""Time both files in every runtime of the recipe."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from qtool.errors import UnsupportedError
from qtool.loading import read_graph
from qtool.pipeline.context import Prepared
from qtool.pipeline.evaluate import Evaluation
from qtool.pipeline.latency.needs import runner_of
from qtool.quant.quantized_io import read_quantized_io
from qtool.recipe.sections.latency import Latency as LatencySection
from qtool.report.latency_schema import FastestPair, Latency, RemoteMachine, RuntimeLatency
from qtool.verification.latency.runtimes import Job, JobResult, Machine, Runner
from qtool.verification.tasks import write_feeds

FLOAT, QUANTIZED = "float", "quantized"
GATES = ("min_speedup", "max_latency_ms")


def with_runtimes(
    prepared: Prepared, file: Path, evaluation: Evaluation, scratch: Path
) -> Evaluation:
    """Return the evaluation with the times in every runtime, where the recipe has such a section.

    Args:
        prepared: the float model, the data and the settings.
        file: the quantized file.
        evaluation: of the file.
        scratch: an existing folder for temporary files.

    Raises:
        RecipeError: the machine of the recipe does not answer.
        UnsupportedError: a gate needs a time of another machine, which cannot run the file.
    """
    section = prepared.recipe.latency
    if section is None:
        return evaluation
    context = prepared.context
    with context.cache.stage("latency") as record, prepared.recipe.locate_errors():
        runner = runner_of(section)
        machine, jobs = runner.probe(), _jobs(prepared, section, file, scratch)
        rows = []
        for job, result in zip(jobs, _results(prepared, runner, jobs, scratch), strict=True):
            rows.append(_row(job, result, machine))
        latency = _latency(evaluation.latency, rows, runner, machine)
        record.notes += _notes(latency)
    _check_gates(prepared, latency)
    return replace(evaluation, latency=latency)


def _jobs(
    prepared: Prepared, section: LatencySection, file: Path, scratch: Path
) -> tuple[Job, ...]:
    graph, quantized = read_graph(file)
    files = {FLOAT: read_graph(prepared.loaded.path)[1], QUANTIZED: quantized}
    io, feeds = read_quantized_io(graph.metadata_props), {}
    sizes = section.batch or (prepared.context.fixed_batch or 1,)
    for size in sizes:
        batch = prepared.first_batch(size)
        for name, arrays in ((FLOAT, batch), (QUANTIZED, io.feeds(batch))):
            feeds[name, size] = scratch / f"{name}-{size}.npz"
            write_feeds(feeds[name, size], arrays)
    return tuple(
        Job(
            runtime,
            threads,
            size,
            files,
            {name: feeds[name, size] for name in files},
            prepared.loaded.big,
        )
        for size, threads, runtime in product(sizes, section.threads, section.runtimes)
    )


def _results(
    prepared: Prepared, runner: Runner, jobs: Sequence[Job], scratch: Path
) -> Iterator[JobResult]:
    where = f"latency on {runner.name}" if runner.name else "latency"
    progress = prepared.context.progress
    progress(where, 0, len(jobs))
    for done, result in enumerate(runner.perform(jobs, scratch), 1):
        progress(where, done, len(jobs))
        yield result


def _row(job: Job, result: JobResult, machine: Machine) -> RuntimeLatency:
    reasons = "; ".join(f"{name} file: {why}" for name, why in result.reasons.items())
    return RuntimeLatency(
        runtime=job.runtime,
        version=machine.version(job.runtime),
        threads=job.threads,
        batch=job.batch,
        float_ms=result.ms.get(FLOAT),
        quantized_ms=result.ms.get(QUANTIZED),
        runs=result.runs or None,
        reason=reasons or None,
    )


def _latency(own: Latency, rows: list[RuntimeLatency], runner: Runner, machine: Machine) -> Latency:
    remote = RemoteMachine(
        name=runner.name, cpu=machine.cpu, cores=machine.cores, python=machine.python
    )
    return own.model_copy(
        update={
            "machine": remote if runner.name else None,
            "runtimes": rows,
            "fastest": list(_fastest(rows)) or None,
        }
    )


def _fastest(rows: Sequence[RuntimeLatency]) -> Iterator[FastestPair]:
    """Yield the fastest float runtime and the fastest quantized one at each setting."""
    for batch, threads in dict.fromkeys((row.batch, row.threads) for row in rows):
        same = [row for row in rows if (row.batch, row.threads) == (batch, threads)]
        floats = [(row.float_ms, row.runtime) for row in same if row.float_ms is not None]
        codes = [(row.quantized_ms, row.runtime) for row in same if row.quantized_ms is not None]
        if not floats or not codes:
            continue
        (float_ms, float_runtime), (quantized_ms, quantized_runtime) = min(floats), min(codes)
        yield FastestPair(
            threads=threads,
            batch=batch,
            float_runtime=float_runtime,
            float_ms=float_ms,
            quantized_runtime=quantized_runtime,
            quantized_ms=quantized_ms,
            speedup=float_ms / quantized_ms,
        )


def _notes(latency: Latency) -> list[str]:
    """Return a warning for each runtime that cannot run a file, and for a file that is slower."""
    failures = {(row.runtime, row.reason): None for row in latency.runtimes or () if row.reason}
    notes = [f"WARNING: {runtime} cannot run the {reason}" for runtime, reason in failures]
    for pair in latency.fastest or ():
        if pair.speedup < 1:
            where = f"threads {pair.threads}, batch {pair.batch}"
            codes = f"{pair.quantized_ms:.3g} ms in {pair.quantized_runtime}"
            floats = f"{pair.float_ms:.3g} ms in {pair.float_runtime}"
            notes.append(
                f"WARNING: no time gained at {where}: the file takes {codes}, the float model "
                f"{floats}"
            )
    return notes


def _check_gates(prepared: Prepared, latency: Latency) -> None:
    """Refuse gates on the time of another machine that could not run one of the files."""
    limits, row = prepared.recipe.gates, latency.checked
    if not isinstance(row, RuntimeLatency) or row.speedup is not None:
        return
    for name in GATES:
        if getattr(limits, name) is not None:
            raise UnsupportedError(
                f"gates.{name}: {row.runtime} on the machine of latency.runner cannot run the "
                f"{row.reason}; drop the gate, or make it run there"
            )
