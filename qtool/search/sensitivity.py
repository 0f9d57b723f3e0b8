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
from typing import Literal, TypeVar

import numpy as np
import torch

from qtool.data import Dataset
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
Kind = Literal["both", "weights", "activations", "cumulative"]

PARTS: tuple[Part, ...] = ("both", "weights", "activations")
CUMULATIVE: Kind = "cumulative"
ALL = "all"
STAGE = "sensitivity"


def row_of(site: str, kind: Kind, effect: Effect) -> Sensitivity:
    """Return what a network with some sites quantized costs, as a row of the report.

    Args:
        site: name of the site, or of several.
        kind: what is quantized.
        effect: of the network.
    """
    return Sensitivity(site=site, kind=kind, kl=effect.kl, drop=effect.drop, sqnr_db=effect.sqnr_db)


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

    def run(self, sites: Collection[str] | None = None) -> list[Sensitivity]:
        """Return the rows of sites in graph order; finished sites are read from the cache.

        Args:
            sites: names of the sites to measure; None: all.
        """
        units = [u for u in self.network.units if sites is None or u.name in sites]
        rows: list[Sensitivity] = []
        with closing(_Walk(self.network, self.reference)) as walk:
            for k, unit in enumerate(units):
                rows += self.context.cache.cached(
                    StageRecord(),
                    STAGE,
                    self._parts(unit),
                    lambda unit=unit: self._measure(walk, unit),  # type: ignore[misc]
                    _save,
                    _load,
                )
                self.context.progress(STAGE, k + 1, len(units))
        return rows

    def extent_note(self) -> str:
        """Return how many sites are measured on how many samples, and how many are finished."""
        count, samples = len(self.network.units), self.reference.dataset.count
        finished = count - len(self.pending())
        earlier = f"; {finished} of an earlier run" if finished else ""
        return f"{count} sites on {samples} calibration samples{earlier}"

    def pending(self) -> list[str]:
        """Return the names of the sites that are not in the cache, in graph order."""
        is_finished = self.context.cache.is_finished
        units = self.network.units
        return [unit.name for unit in units if not is_finished(STAGE, self._parts(unit))]

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
                together.append(self.together(name, part, chosen))
            self.context.progress("sensitivity of op types", done, 1 + len(ops))
        return together

    def together(self, name: str, part: Part, chosen: Collection[Unit]) -> Sensitivity:
        """Return what several sites cost together; read from the cache where it is finished.

        Args:
            name: of the row.
            part: what is quantized of each site.
            chosen: the sites.
        """

        def measured() -> list[Sensitivity]:
            outputs = self.network.run(
                self.context,
                self.reference.dataset,
                lambda unit: part if unit in chosen else None,
            )
            return [row_of(name, part, self.reference.effect(outputs))]

        key = self._key(name, part, *(unit.name for unit in self.network.units if unit in chosen))
        (row,) = self.context.cache.cached(
            StageRecord(), "sensitivity-together", key, measured, _save, _load
        )
        return row

    def estimates(
        self, name: str, dataset: Dataset, make: Callable[[], Mapping[str, float]]
    ) -> Mapping[str, float]:
        """Return estimates of the sites' costs; read from the cache where they are finished.

        Args:
            name: of the method.
            dataset: that it reads.
            make: computes them from the plan, the dataset and the seed.
        """
        key = self._key(name, dataset.digest, str(self.context.seed))
        return self.context.cache.cached(
            StageRecord(), "sensitivity-estimates", key, make, _save_numbers, _load_numbers
        )

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
        return self._key(*self.parts, str(self.cumulative), unit.name)

    def _key(self, *more: str) -> tuple[str, ...]:
        """Return everything that a result depends on: network, samples, metric, plan, and more."""
        metric, data = self.reference.metric, self.reference.dataset
        name = metric.name if metric else ""
        return (self.context.sha256, data.digest, name, self._digest, *more)


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


def _save_numbers(numbers: Mapping[str, float], path: Path) -> None:
    path.write_text(json.dumps(dict(numbers)))


def _load_numbers(path: Path) -> Mapping[str, float]:
    return {name: float(number) for name, number in json.loads(path.read_text()).items()}
