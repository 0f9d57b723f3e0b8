"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """The device that calibration and training compute on."""

    cpu = "cpu"
    cuda = "cuda"


RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="R.yaml", help="What to do, as YAML.")
]
Model = Annotated[
    Path | None,
    typer.Option(
        "--model", metavar="M", help="The float ONNX file, or a .pt2 or .pt file of torch."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="A file or a folder of images, class folders, arrays or recordings. Parts such as "
        "DIR/train and DIR/test calibrate and evaluate; of one part every second sample "
        "calibrates, the others evaluate.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="The run folder, replaced where it exists. [default: runs/<recipe name>; where that "
        "holds another run, runs/<recipe name>-2, ...]",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace another run in runs/<recipe name>."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override the recipe, as in --set calibrate.count=64; null removes a key. Paths are "
        "relative to the recipe, or without one to the working folder.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, max=2**32 - 1, help="The seed of everything random."
    ),
]
ComputeDevice = Annotated[
    Device, typer.Option("--device", help="Where to compute; the file is evaluated on the CPU.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, max=256, help="CPU threads. [default: physical cores]"
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Stay below so much memory, such as 2G; what does not fit goes to temporary files.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        metavar="N",
        min=1,
        help="Processes at a time, for searches, scans and sweeps; --threads is then 1 for each.",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="URL",
        help="Run on a Dask or Ray cluster instead: dask://HOST:PORT or ray://HOST:PORT.",
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="Start from the plan.json of an earlier run."),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Allow what the recipe names to run code: torch models, readers of your own.",
    ),
]
Requantize = Annotated[
    bool,
    typer.Option(
        "--requantize",
        help="Turn an ONNX file that is quantized already back to floats first; the report calls "
        "what comes out of that float.",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do finished stages again.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Exit with 1 also for verdicts not judged, not proven and warning."
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="RUN", help="The earlier run that gates.max_regression compares with."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
