"""Whole runs from Python: ``qtool ptq``, ``qat`` and ``verify`` as functions."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, TypedDict, Unpack

from qtool.errors import RecipeError, suggest
from qtool.recipe.loader import load_recipe, recipe_from_keywords, recipe_from_options
from qtool.recipe.model import Recipe
from qtool.report.render import render
from qtool.report.report import Report

RecipeLike = str | Path | Mapping[str, Any]


class NotebookReport(Report):
    """A report that notebooks show as the page report.html."""

    @classmethod
    def of(cls, report: Report) -> "NotebookReport":
        """Return a report as one that notebooks show."""
        parts = {name: getattr(report, name) for name in Report.model_fields}
        return cls.model_construct(report.model_fields_set, **parts)

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, so that its styles stay there."""
        page = escape(render(self, "html"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 48em; border: 0"></iframe>'


class RunKeywords(TypedDict, total=False):
    """Options of a run, as on the command line.

    Attributes:
        seed: of every random choice; default 0.
        device: "cpu" or "cuda".
        threads: CPU threads; default the physical cores.
        trust_code: allow what the recipe names to run code.
        requantize: turn a quantized ONNX file back to floats first.
        fresh: do finished stages again.
        baseline: folder or report.json of an earlier run, for the gate ``max_regression``.
        jobs: processes that a search (``bits.budget``, ``ptq: auto``) is spread over; default 1.
        cluster: ``dask://HOST:PORT`` or ``ray://HOST:PORT``, whose workers are used instead.
    """

    seed: int
    device: str
    threads: int | None
    trust_code: bool
    requantize: bool
    fresh: bool
    baseline: str | Path | None
    jobs: int
    cluster: str | None


class VerifyKeywords(TypedDict, total=False):
    """Options of :func:`verify`, as on the command line.

    Attributes:
        seed: of every random choice; default 0.
        threads: CPU threads; default the physical cores.
        trust_code: allow what the recipe names to run code.
        baseline: as for :class:`RunKeywords`.
    """

    seed: int
    threads: int | None
    trust_code: bool
    baseline: str | Path | None


def run_ptq(recipe: RecipeLike, out: str | Path, **options: Unpack[RunKeywords]) -> NotebookReport:
    """Quantize a network after training, as ``qtool ptq``.

    Args:
        recipe: path of a recipe, or its content; paths in it are relative to the working directory.
        out: the run folder; made when missing, its files are replaced.
        options: see :class:`RunKeywords`.

    Returns:
        The report; a notebook shows it as the page report.html.

    Raises:
        QtoolError: anything that is the caller's to fix; then nothing was written.
    """
    return _run("run_ptq", recipe, out, options)


def run_qat(
    recipe: RecipeLike, out: str | Path, epochs: int | None = None, **options: Unpack[RunKeywords]
) -> NotebookReport:
    """Train a network with quantization in the loop, as ``qtool qat``.

    Args:
        recipe: as for :func:`run_ptq`; its ``qat`` section says how to train.
        out: as for :func:`run_ptq`.
        epochs: instead of the recipe's.
        options: see :class:`RunKeywords`.

    Raises:
        QtoolError: anything that is the caller's to fix; then nothing was written.
    """
    return _run("run_qat", recipe, out, options, epochs)


def verify(
    file: str | Path,
    against: str | Path | None = None,
    data: str | Path | None = None,
    *,
    recipe: RecipeLike | None = None,
    **options: Unpack[VerifyKeywords],
) -> NotebookReport:
    """Measure any quantized ONNX file against its float model, as ``qtool verify``.

    Args:
        file: the quantized file.
        against: the float model; with ``data``, instead of a recipe.
        data: a folder of images, or arrays.
        recipe: as for :func:`run_ptq`; instead of ``against`` and ``data``.
        options: see :class:`VerifyKeywords`.

    Raises:
        RecipeError: neither a recipe nor both of ``against`` and ``data``.
        QtoolError: anything that is the caller's to fix.
    """
    from qtool.pipeline.verify_file import verify_file

    if recipe is not None:
        chosen = _recipe(recipe, "qtool.verify")
    elif against is not None and data is not None:
        chosen = recipe_from_options(against, data)
    else:
        raise RecipeError("qtool.verify: expected `against` and `data`, or `recipe`; give the rest")
    run_options = _options("qtool.verify", VerifyKeywords, options)
    return NotebookReport.of(verify_file(Path(file), chosen, run_options))


def _run(
    function: str,
    recipe: RecipeLike,
    out: str | Path,
    options: RunKeywords,
    epochs: int | None = None,
) -> NotebookReport:
    """Run the pipeline's function of that name."""
    from qtool.pipeline import run

    chosen = _recipe(recipe, f"qtool.{function}", epochs)
    run_options = _options(f"qtool.{function}", RunKeywords, options)
    report: Report = getattr(run, function)(chosen, Path(out), run_options)
    return NotebookReport.of(report)


def _options(function: str, kind: type, options: Mapping[str, Any]) -> Any:
    """Return the options of the pipeline; those that ``kind`` does not name are refused."""
    from qtool.pipeline.context import RunOptions
    from qtool.pipeline.search.spread.cluster import Spread

    expected = kind.__annotations__
    for name in options:
        if name not in expected:
            raise RecipeError(
                f"{function}: unknown option {name}{suggest(name, expected)}; expected "
                f"{', '.join(expected)}"
            )
    words = dict(options)
    if words.get("baseline") is not None:
        words["baseline"] = Report.read(Path(words["baseline"]))
    spread = Spread(words.pop("jobs", 1), words.pop("cluster", None))
    return RunOptions(**words, spread=spread)


def _recipe(recipe: RecipeLike, place: str, epochs: int | None = None) -> Recipe:
    if not isinstance(recipe, Mapping):
        return load_recipe(recipe, () if epochs is None else (f"qat.epochs={epochs}",))
    words = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in recipe.items()
    }
    if epochs is not None:
        words["qat"] = {**(words.get("qat") or {}), "epochs": epochs}
    return recipe_from_keywords(words, place, Path.cwd(), files=True)
