"""The ``qtool`` command and its subcommands; they import what they need when they run."""

import logging
import os
import signal
import sys
import warnings
from types import FrameType

import typer

from qtool.cli.check import check
from qtool.cli.init import init
from qtool.cli.inspect import inspect
from qtool.cli.list import list_
from qtool.cli.ptq import ptq
from qtool.cli.qat import qat
from qtool.cli.report import report
from qtool.cli.schema import schema
from qtool.cli.sensitivity import sensitivity
from qtool.cli.sweep import sweep
from qtool.cli.verify import verify
from qtool.version import __version__

app = typer.Typer(
    name="qtool",
    help="Quantize an ONNX network with a dataset folder, and verify the file that was written.",
    epilog="Exit codes: 0 done, 1 a gate failed, 2 recipe, file, data or option is wrong, "
    "3 model or target not supported, 70 a bug in qtool, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ptq", short_help="Quantize a model and report on the file.")(ptq)
app.command("qat", short_help="Train with quantization in the loop.")(qat)
app.command("report", short_help="Show one run, or compare several.")(report)
app.command("init", short_help="Write a recipe for a model and its data.")(init)
app.command("check", short_help="Show what a recipe would do.")(check)
app.command("inspect", short_help="Describe a model, or the file of a run.")(inspect)
app.command("sensitivity", short_help="Measure what each layer costs.")(sensitivity)
app.command("sweep", short_help="Run a recipe with several values, and compare.")(sweep)
app.command("verify", short_help="Compare any quantized file with its float model.")(verify)
app.command("list", short_help="List what a recipe can name.")(list_)
app.command("schema", short_help="Print the recipe's JSON schema.")(schema)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"qtool {__version__}")
        raise typer.Exit(0)


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Hold the options that stand before a command."""


def main() -> None:
    """Run the command line; always ends in SystemExit with a documented exit code."""
    # Threads of torch that wait by spinning take a core each from a busy neighbour: its time grew
    # 20-fold (benchmarks/simulate.py). OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # numpy's, of values near the end of float32: what must be finite is checked, by name.
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning)
    # The library's warnings hold names of damaged files as they are; errors of our own name both.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(os, "register_at_fork"):  # worker processes end on SIGTERM as usual
        os.register_at_fork(after_in_child=_restore_sigterm)
    app(prog_name="qtool")


def entry() -> None:
    """Run the command line as a process: like :func:`main`, but exit without freeing torch.

    Freeing torch's modules one by one takes half a second; no file is left to be written then.
    joblib removes its temporary folders at the usual exit.
    """
    try:
        main()
    except SystemExit as end:
        if "torch" not in sys.modules or "joblib" in sys.modules:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _restore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
