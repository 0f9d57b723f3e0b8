"""``qtool init``: look at a model and a folder of data, and write a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import options
from qtool.cli.console.exits import exit_codes, print_result, printable
from qtool.cli.console.progress import show_progress
from qtool.errors import RecipeError

if TYPE_CHECKING:
    from qtool.pipeline.proposal.propose import Proposal


def init(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The float model.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder or a file of data.")],
    target: Annotated[
        str, typer.Option("--target", metavar="T", help="The runtime to quantize for.")
    ] = "onnxruntime-cpu",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="R.yaml", help="The recipe. [default: <model>.yaml]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a recipe that is there.")
    ] = False,
    trust_code: options.TrustCode = False,
    quiet: options.Quiet = False,
) -> None:
    """Try the usual ways to read the data with the model, and write a commented recipe."""
    with exit_codes():
        path = out if out is not None else Path(f"{model.stem}.yaml")
        if path.exists() and not overwrite:
            raise RecipeError(f'--out: "{path}" is there already; add --overwrite to replace it')
        from qtool.files import write_text_atomic
        from qtool.pipeline.context import RunOptions
        from qtool.pipeline.proposal.propose import propose
        from qtool.pipeline.proposal.recipe_text import recipe_text

        with show_progress(quiet) as progress:
            run_options = RunOptions(trust_code=trust_code, progress=progress)
            proposal = propose(model, data, target, run_options)
        write_text_atomic(path, recipe_text(proposal, path))
        print_result(printable(_summary(proposal, path)))


def _summary(proposal: "Proposal", path: Path) -> str:
    """Return what was guessed, what is unknown, and the next command."""
    lines = [f"{path}:"]
    lines += [f"  {'.'.join(key)}: {comment}" for key, comment in proposal.comments.items()]
    lines += [f"  not known: {sentence}" for sentence in proposal.unknown]
    if proposal.runs:
        lines += ["", f"Next: qtool ptq --recipe {path}"]
    else:
        lines += ["", f"It does not run yet: correct {path}, then qtool check {path}"]
    return "\n".join(lines)
