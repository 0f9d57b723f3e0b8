"""Own the run folder: lock it, clean up after a failure, put finished files in place."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtool.errors import RecipeError
from qtool.files import atomic_path, write_text_atomic
from qtool.pipeline.context import RunOptions
from qtool.pipeline.folders.choice import OWNER, remove_empty
from qtool.pipeline.stages import Emitted
from qtool.quant.plan_io import write_plan
from qtool.recipe.model import Recipe
from qtool.report.render import write_run_files
from qtool.report.report import Report
from qtool.runtime.ort_options import default_threads
from qtool.steps.stage_cache import StageCache, first_missing, source_digest
from qtool.verification.environment import environment
from qtool.verification.file_size import written_files

SCRATCH = "scratch"


def open_cache(out: Path, options: RunOptions) -> StageCache:
    """Return the stage cache of a run folder.

    Args:
        out: the run folder.
        options: of the run; results depend on its threads and device.
    """
    threads = options.threads or default_threads()
    base = (source_digest(), str(environment()), str(threads), options.device)
    return StageCache(out / ".stages", options.fresh, base)


@contextmanager
def run_folder(out: Path, options: RunOptions) -> Iterator[tuple[StageCache, Path]]:
    """Yield the stage cache and an empty scratch folder; hold the run folder meanwhile.

    After an error a folder that did not exist before is removed; after an interruption the
    finished stages stay, so that the same command continues.

    Args:
        out: the run folder; made when missing.
        options: of the run.

    Raises:
        RecipeError: another run is writing there.
    """
    created = first_missing(out)
    cache = open_cache(out, options)
    scratch = cache.folder / SCRATCH
    with cache.locked():
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            if cache.fresh and options.spread.several:
                cache.empty(spared=OWNER.name)
            scratch.mkdir(parents=True)
            yield cache, scratch
        except Exception:
            if created is not None:
                shutil.rmtree(out, ignore_errors=True)
                remove_empty(out.parent, created)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _previous_files(out: Path) -> set[str]:
    """Return the names that the file of the run in the folder has, and that of its weights."""
    try:
        previous = Path(Report.read(out).output.path).name
    except RecipeError:  # there was none, or its report is damaged
        return set()
    return {previous, f"{previous}.data"}


def write_run(recipe: Recipe, emitted: Emitted, report: Report, out: Path) -> None:
    """Put the files of a run in place, each whole or not at all; the report last.

    Args:
        recipe: with all defaults, as it runs again.
        emitted: the file in the scratch folder; it is moved.
        report: of the run.
        out: the run folder.
    """
    files = written_files(emitted.path)
    replaced = _previous_files(out) - {path.name for path in files}
    for path in reversed(files):  # the weights first: a reader who finds the file finds them too
        with atomic_path(out / path.name) as temporary:
            shutil.move(path, temporary)
    write_plan(emitted.plan, out)
    write_text_atomic(out / "recipe.yaml", recipe.dump())
    lines = [stage.model_dump_json(exclude_none=True) for stage in report.stages]
    lines += [json.dumps({"plan": line}) for line in emitted.plan.log]
    write_text_atomic(out / "log.jsonl", "\n".join(lines) + "\n")
    write_run_files(report, out)
    for name in replaced:
        (out / name).unlink(missing_ok=True)
