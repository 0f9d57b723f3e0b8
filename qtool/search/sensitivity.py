"""Measure what each site costs: quantized alone, and with all sites before it.

With one site changed only the nodes behind it are computed again, in ONNX Runtime; the values in
front of it are stored for all samples, and every node in front of it runs once.
"""

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from qtool.quant.plan import QuantPlan
from qtool.quant.plan_archive import plan_digest
from qtool.report.search_schema import Sensitivity
from qtool.runtime.chunk_threads import map_chunks
from qtool.search.effects import Effect, Reference
from qtool.search.partial_network import Part, PartialNetwork, Unit
from qtool.search.suffix import Suffix
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageRecord
from qtool.steps.value_store import ValueStore

Result = TypeVar("Result")
Kind = Literal["both", "weights", "activations", "cumulative", "pair"]

PARTS: tuple[Part, ...] = ("both", "weights", "activations")
CUMULATIVE: Kind = "cumulative"
ALL = "all"
STAGE = "sensitivity"


def row_of(site: str, kind: Kind, effect: Effect, **more: Any) -> Sensitivity:
    """Return what a network with some sites quantized costs, as a row of the report.

    Args:
        site: name of the site, or of several.
        kind: what is quantized.
        effect: of the network.
        more: other fields of the row.
    """
    return Sensitivity(
        site=site, kind=kind, kl=effect.kl, drop=effect.drop, sqnr_db=effect.sqnr_db, **more
    )


@dataclass(frozen=True)
class Scan:
    """The costs of the sites of one plan.

    Attributes:
        plan: every grid is calibrated.
        reference: samples and outputs of the float network.
        parts: what is quantized of each site, one after the other.
        cumulative: measure each site together with all before it, too.
    """

    plan: QuantPlan
    reference: Reference
    parts: tuple[Part, ...] = PARTS
    cumulative: bool = True

    @property
    def context(self) -> Context:
        """Float network and cache."""
        return self.reference.context

    @cached_property
    def network(self) -> PartialNetwork:
        """The network whose sites are quantized one by one."""
        return PartialNetwork(self.context, self.plan)

    @cached_property
    def _digest(self) -> str:
        return plan_digest(self.plan)

    def run(self, record: StageRecord, sites: Collection[str] | None = None) -> list[Sensitivity]:
        """Return the rows of sites in graph order; finished sites are read from the cache.

        Args:
            record: of the running stage.
            sites: names of the sites to measure; None: all.
        """
        units = [u for u in self.network.units if sites is None or u.name in sites]
        rows: list[Sensitivity] = []
        cached = 0
        with closing(_Walk(self.network, self.reference)) as walk:
            for k, unit in enumerate(units):
                trial = StageRecord()
                rows += self.context.cache.cached(
                    trial,
                    STAGE,
                    self._parts(unit),
                    lambda unit=unit: self._measure(walk, unit),  # type: ignore[misc]
                    _save,
                    _load,
                )
                cached += trial.cached
                self.context.progress(STAGE, k + 1, len(units))
        record.notes.append(self.extent_note(cached))
        return rows

    def extent_note(self, cached: int) -> str:
        """Return how many sites are measured on how many samples.

        Args:
            cached: sites that an earlier run finished.
        """
        count, samples = len(self.network.units), self.reference.dataset.count
        earlier = f"; {cached} of an earlier run" if cached else ""
        return f"{count} sites on {samples} calibration samples{earlier}"

    def pending(self) -> list[str]:
        """Return the names of the sites that are not in the cache, in graph order."""
        paths = self._paths()
        return [name for name, path in paths.items() if not path.is_file()]

    def forget(self) -> None:
        """Remove finished sites from the cache."""
        for path in self._paths().values():
            path.unlink(missing_ok=True)

    def _paths(self) -> dict[str, Path]:
        cache = self.context.cache
        return {unit.name: cache.path_for(STAGE, self._parts(unit)) for unit in self.network.units}

    def whole(self, rows: Sequence[Sensitivity]) -> list[Sensitivity]:
        """Return the costs of all sites together, by part, and of all sites of one op type.

        Args:
            rows: of the single sites; one that is the same network is taken from there.
        """
        network = self.network
        ops = sorted({unit.op for unit in network.units})
        measured = {(row.site, str(row.kind)): row for row in rows}
        together = []
        for done, op in enumerate((None, *ops), 1):
            chosen = {unit for unit in network.units if op is None or unit.op == op}
            name = ALL if op is None else f"op:{op}"
            for part in self.parts if op is None else ("both",):
                if (same := _same_network(network, chosen, part, measured)) is not None:
                    together.append(same.model_copy(update={"site": name, "kind": part}))
                    continue
                outputs = network.run(
                    self.context,
                    self.reference.dataset,
                    lambda unit, part=part, chosen=chosen: part if unit in chosen else None,  # type: ignore[misc]
                )
                together.append(row_of(name, part, self.reference.effect(outputs)))
            self.context.progress("sensitivity of op types", done, 1 + len(ops))
        return together

    def _measure(self, walk: "_Walk", unit: Unit) -> list[Sensitivity]:
        walk.go_to(unit)
        with closing(walk.suffix(unit)) as suffix:
            effects: dict[str, Effect] = {}
            for part in self.parts:
                if unit.weights or unit.others or part == "both":
                    effects[part] = self.reference.effect(walk.alone(unit, part, suffix))
                elif part == "weights":
                    effects[part] = self.reference.effect(self.reference.outputs)
                else:  # without weights the activations are all there is
                    effects[part] = effects.get("both") or self.reference.effect(
                        walk.alone(unit, part, suffix)
                    )
            rows = [row_of(unit.name, part, effects[part]) for part in self.parts]
            if self.cumulative:
                effect = self.reference.effect(walk.together(unit, suffix))
                rows.append(row_of(unit.name, CUMULATIVE, effect))
        return rows

    def _parts(self, unit: Unit) -> tuple[str, ...]:
        metric, data = self.reference.metric, self.reference.dataset
        kinds = (*self.parts, str(self.cumulative))
        name = metric.name if metric else ""
        return (self.context.sha256, data.digest, name, *kinds, self._digest, unit.name)


def _same_network(
    network: PartialNetwork,
    chosen: Collection[Unit],
    part: Part,
    measured: Mapping[tuple[str, str], Sensitivity],
) -> Sensitivity | None:
    """Return the row of the network in which just these units are quantized; None: not measured."""
    if len(chosen) == 1:
        return measured.get((next(iter(chosen)).name, part))
    if len(chosen) == len(network.units) and part == "both":
        return measured.get((network.units[-1].name, CUMULATIVE))
    return None


class _Walk:
    """Values in front of one unit after the other, in the float and in the quantized network."""

    def __init__(self, network: PartialNetwork, reference: Reference) -> None:
        self._network, self._reference = network, reference
        self._context = reference.context
        self._folder = tempfile.TemporaryDirectory(prefix="qtool-")
        self._store = ValueStore(Path(self._folder.name))
        self._valid: list[int] = []
        self._ahead = list(network.units)
        self._is_passed = False  # by the quantized network, see `together`

    def close(self) -> None:
        """Remove what was stored."""
        self._folder.cleanup()

    def go_to(self, unit: Unit) -> None:
        """Pass all units before ``unit``, and store what it reads and what is alive behind it."""
        if not self._valid:
            for feeds, valid in self._context.feeds(self._reference.dataset):
                values = _tensors(feeds)
                self._store.put(len(self._valid), values, values)
                self._valid.append(valid)
        while self._ahead[0] != unit:
            self._each(partial(self._pass, self._ahead.pop(0)))
            self._is_passed = False

        def prepare(k: int) -> None:
            before = (self._network.before(values, unit) for values in self._store.get(k))
            self._store.put(k, *before)

        self._each(prepare)

    def _pass(self, unit: Unit, k: int) -> None:
        float_values, quantized = self._store.get(k)
        if not self._is_passed:
            quantized = self._network.advance(quantized, unit, "both")
        self._store.put(k, self._network.advance(float_values, unit, None), quantized)

    def _each(self, compute: Callable[[int], Result]) -> list[Result]:
        """Return the results of all batches; they are computed side by side."""
        return list(map_chunks(compute, range(len(self._valid)), self._context.device))

    def suffix(self, unit: Unit) -> Suffix:
        """Return the float network behind a unit, where :meth:`go_to` stands."""
        values = self._store.get(0)[0]
        alive = self._network.behind(values, unit, self._network.outputs(values, unit, None))
        context = self._context
        return Suffix(context.model, alive, context.first_output)

    def alone(self, unit: Unit, part: Part, suffix: Suffix) -> np.ndarray:
        """Return the network's output with one unit quantized."""

        def output(k: int) -> np.ndarray:
            values = self._store.get(k)[0]
            changed = self._network.outputs(values, unit, part)
            rows = suffix(self._network.behind(values, unit, changed))
            return np.asarray(self._context.samples_of(rows, self._valid[k]))

        return np.concatenate(self._each(output))

    def together(self, unit: Unit, suffix: Suffix) -> np.ndarray:
        """Return the network's output with a unit and all before it quantized; pass the unit.

        It comes last of a unit: in the quantized network the values in front of it are gone.
        """

        def output(k: int) -> np.ndarray:
            float_values, quantized = self._store.get(k)
            changed = self._network.outputs(quantized, unit, "both")
            behind = self._network.behind(quantized, unit, changed)
            self._store.put(k, float_values, behind)
            return np.asarray(self._context.samples_of(suffix(behind), self._valid[k]))

        outputs = self._each(output)
        self._is_passed = True
        return np.concatenate(outputs)


def _tensors(feeds: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(array) for name, array in feeds.items()}


def _save(rows: Iterable[Sensitivity], path: Path) -> None:
    path.write_text(json.dumps([row.model_dump() for row in rows]))


def _load(path: Path) -> list[Sensitivity]:
    return [Sensitivity.model_validate(row) for row in json.loads(path.read_text())]
