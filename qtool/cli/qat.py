"""``qtool qat``: train with quantization in the loop, write the file and report on it."""

from typing import Annotated

import typer

from qtool.cli.console import options, shorthands
from qtool.cli.console.exits import exit_codes
from qtool.cli.ptq import Command, Folder, Output, Settings, quantize

Epochs = Annotated[
    int | None,
    typer.Option("--epochs", metavar="N", min=1, help="Instead of the recipe's qat.epochs."),
]


def qat(
    files: shorthands.Files = None,
    recipe: options.RecipeFile = None,
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    epochs: Epochs = None,
    bits: shorthands.Bits = None,
    count: shorthands.Count = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    device: options.ComputeDevice = options.Device.cpu,
    threads: options.Threads = None,
    memory: options.Memory = None,
    plan: options.Plan = None,
    trust_code: options.TrustCode = False,
    requantize: options.Requantize = False,
    fresh: options.Fresh = False,
    baseline: options.Baseline = None,
    jobs: options.Jobs = 1,
    cluster: options.Cluster = None,
    strict: options.Strict = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Calibrate a model, train it with quantization in the loop, write it, and report."""
    with exit_codes(json):
        named = shorthands.named_files(files, shorthands.Sources(recipe, model, data))
        words = shorthands.overrides(bits, count, settings, memory, epochs)
    quantize(
        Command("run_qat", named, Folder(out, overwrite), tuple(words)),
        Settings(
            *(seed, device, threads, plan, trust_code, requantize, fresh, baseline, jobs, cluster)
        ),
        Output(json, quiet, strict),
    )
