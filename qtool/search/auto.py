"""The entry ``auto`` of a recipe's ``ptq``: steps and bits are chosen before the run."""

import math
import re
import time
from dataclasses import KW_ONLY
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from qtool.errors import RecipeError
from qtool.progress import Progress, silent
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context
from qtool.steps.step import StepResult

SECONDS = {"s": 1, "m": 60, "h": 3600}
_TIME = re.compile(r"^(\d+(?:\.\d+)?)\s*([smh])$")


def _check_time(value: Any) -> str:
    if not isinstance(value, str) or seconds_of(value) <= 0:
        raise ValueError(f"found {value}, expected a time such as 10m, 90s or 1h")
    return value


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as ``10m``; 0 where it is no time."""
    match = _TIME.match(text)
    return 0.0 if match is None else float(match[1]) * SECONDS[match[2]]


class OutOfTimeError(Exception):
    """The time of a search is over."""


class Deadline:
    """A progress that ends long work when its time is over.

    All that takes long reports its progress: statistics batch by batch, repair layer by layer,
    reconstruction by iterations, a scan site by site. So each of them can be ended at any of these
    points, whatever it was estimated to take.

    Attributes:
        until: of ``time.perf_counter``; at first there is no end.
        progress: receives what is reported.
    """

    def __init__(self, progress: Progress = silent) -> None:
        """Report to ``progress``."""
        self.progress, self.until = progress, math.inf

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Report progress; see :class:`qtool.progress.Progress`.

        Raises:
            OutOfTimeError: the time is over.
        """
        if time.perf_counter() > self.until:
            raise OutOfTimeError
        self.progress(stage, done, total, note)


@dataclass(frozen=True)
class Auto:
    """Choose ranges, repair and bits step by step until gates.max_drop holds with a margin.

    Steps, in order: plain rounding, ranges by `auto`, equalization, bias correction, GPTQ,
    reconstruction where time is left, and at last float for the fewest layers. Where weights have
    fewer than 8 bits, GPTQ comes first, and layers get up to 8 bits, for the fewest bytes, before
    ranges, and equalization that no diagnosis names, are tried.
    A step is used where samples that nothing was fitted to say that the output came closer. The
    search ends when the drop on them, with one standard error, is within gates.max_drop (1 point
    where there is none), or the time is over. The run folder holds the recipe that was chosen,
    without `auto`.

        use step k  if  KL(with k) < 0.99 KL(without)

    Args:
        time: of the search: 10m, 90s, 1h. A trial that does not end in it is broken off, but for
            the first, plain rounding. Evaluating the file comes on top.
    """

    _: KW_ONLY
    time: Annotated[str, BeforeValidator(_check_time)] = "10m"

    needs: ClassVar[frozenset[str]] = frozenset()
    guarded: ClassVar[bool] = False

    @property
    def seconds(self) -> float:
        """The time of the search in seconds."""
        return seconds_of(self.time)

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Refuse: by the time that steps run, the recipe must be chosen.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(
            "auto chooses a recipe before the run, which `qtool ptq` and `qtool qat` do; take the "
            "steps of the recipe in their run folder",
            ("ptq",),
        )
