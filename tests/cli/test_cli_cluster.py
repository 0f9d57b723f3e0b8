"""``--cluster``: the same files on a Dask and on a Ray cluster, lost workers, messages."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from qtool.errors import RecipeError
from qtool.pipeline.search.spread import cluster
from qtool.pipeline.search.spread.cluster import Spread, read_address, workers

ROOT = Path(__file__).parents[2]
SMALL = ("--over", "calibrate.count=16", "--over", "evaluate.count=16")
START_SECONDS = 180


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {START_SECONDS} s"
        time.sleep(0.1)


@contextmanager
def dask_cluster(folder, count=2):
    """A scheduler and workers of one thread; yields its URL and the workers."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("no Dask; pip install 'qtool[dask]'")
    port, env = free_port(), {**os.environ, "PYTHONPATH": str(ROOT)}
    dask = [sys.executable, "-m", "distributed.cli"]
    start = [f"{dask[2]}.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    worker = [f"{dask[2]}.dask_worker", f"127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard"]
    worker += ["--local-directory", str(folder)]
    lines = [[*start, "--no-dashboard"], *[worker] * count]
    processes = []
    with (folder / "dask.log").open("w") as log:
        try:
            for line in lines:
                command = [sys.executable, "-m", *line]
                processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
                wait_for(lambda: answers(port))
            from distributed import Client

            with Client(f"tcp://127.0.0.1:{port}") as client:
                client.wait_for_workers(count, timeout=START_SECONDS)
            yield f"dask://127.0.0.1:{port}", processes[1:]
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def still_held(url) -> list[bool]:
    """Return for each worker whether it holds a model of a search that is over."""
    from distributed import Client

    with Client(url.replace("dask", "tcp")) as client:
        return list(client.run(lambda: bool(cluster._HELD)).values())


@contextmanager
def ray_cluster(folder):
    """A local Ray with two workers; yields its URL."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray; pip install 'qtool[ray]'")
    port, gcs = free_port(), free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    # Sockets of Ray lie below its folder, whose name must be short.
    short = Path(f"/tmp/qtool-ray-{os.getpid()}")
    start = [*ray, "start", "--head", "--num-cpus=2", f"--port={gcs}", "--include-dashboard=false"]
    start += [f"--ray-client-server-port={port}", f"--temp-dir={short}", "--disable-usage-stats"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = set(psutil.pids())
    done = subprocess.run(start, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    try:
        wait_for(lambda: answers(port))
        yield f"ray://127.0.0.1:{port}"
    finally:
        for process in psutil.process_iter():
            if process.pid not in before and str(short) in " ".join(process.cmdline()):
                process.kill()
        shutil.rmtree(short, ignore_errors=True)


def sweep(digits, out, *options) -> list[str]:
    """Run a sweep of two widths; return the digests of its files."""
    line = [sys.executable, "-m", "qtool", "sweep", digits / "int8.yaml", "--out", out, "--quiet"]
    line += ["--over", "bits.weights=8,6", *SMALL, *options]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(p.read_text()) for p in sorted(out.glob("*/report.json"))]
    assert len(reports) == 2
    return [report["output"]["sha256"] for report in reports]


def sensitivity_line(digits, out, *options) -> list[str]:
    """Return the command that measures the sites of the digits."""
    line = [sys.executable, "-m", "qtool", "sensitivity", digits / "int8.yaml", "--out", out]
    line += ["--threads", "1", "--samples", "24", "--set", "calibrate.count=48", "--quiet"]
    return list(map(str, [*line, *options]))


def sensitivity(digits, out, *options) -> list[dict]:
    """Measure the sites of the digits; return the rows."""
    done = subprocess.run(sensitivity_line(digits, out, *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "report.json").read_text())["sensitivity"]


def search(digits, out, *options) -> list:
    """Choose widths for the digits; return the file's digest and what was tried, without times."""
    line = [sys.executable, "-m", "qtool", "ptq", "--recipe", digits / "int8.yaml", "--out", out]
    line += ["--threads", "1", "--quiet", "--set", "calibrate.count=48", "--set", "ptq=[gptq]"]
    line += ["--set", "evaluate.count=16", "--set", "bits={weights: 8}"]
    line += ["--set", "bits.budget={weights: 16%, among: [3, 8]}", *options]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads((out / "report.json").read_text())
    points = [report["search"]["chosen"], *report["search"]["front"]]
    values = [(point["name"], point["kl"], point["bytes"]) for point in points]
    return [report["output"]["sha256"], *values]


@pytest.mark.slow
@pytest.mark.parametrize("command", [sweep, sensitivity, search])
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_cluster_gives_the_same_results(kind, command, digits, tmp_path):
    """The files of a sweep, the rows of a sensitivity scan, and what a search chooses."""
    clusters = {"dask": dask_cluster, "ray": ray_cluster}
    with clusters[kind](tmp_path) as started:
        url = started if isinstance(started, str) else started[0]
        there = command(digits, tmp_path / "there", "--cluster", url)
        assert kind != "dask" or not any(still_held(url))
    assert there == command(digits, tmp_path / "here")


@pytest.mark.slow
def test_the_sites_of_a_lost_worker_are_measured_again(digits, tmp_path):
    with dask_cluster(tmp_path) as (url, processes):
        line = sensitivity_line(digits, tmp_path / "out", "--cluster", url)
        with subprocess.Popen(line, stderr=subprocess.PIPE) as running:
            wait_for(lambda: list((tmp_path / "out").glob(".stages/sensitivity-*")))
            processes[0].send_signal(signal.SIGKILL)
            _, errors = running.communicate(timeout=300)
        assert running.returncode == 0, errors
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["sensitivity"]
    assert rows == sensitivity(digits, tmp_path / "here")


@pytest.mark.slow
def test_the_run_of_a_lost_worker_is_run_again(digits, tmp_path):
    with dask_cluster(tmp_path) as (url, processes):
        line = [sys.executable, "-m", "qtool", "sweep", digits / "int8.yaml", "--quiet"]
        line += ["--out", tmp_path / "out", "--over", "bits.weights=8,6", *SMALL, "--cluster", url]
        with subprocess.Popen(list(map(str, line)), stderr=subprocess.PIPE) as running:
            wait_for(lambda: list((tmp_path / "out").glob("*/.stages")))
            processes[0].send_signal(signal.SIGKILL)
            _, errors = running.communicate(timeout=300)
        assert running.returncode == 0, errors
    assert len(list((tmp_path / "out").glob("*/report.json"))) == 2


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("dask", "expected dask://HOST:PORT"),
        ("dusk://host:1", 'did you mean "dask"'),
        ("dask://host", "expected dask://HOST:PORT"),
        ("ray://host:port", "expected dask://HOST:PORT"),
        ("ray://host:1/x", "expected dask://HOST:PORT"),
    ],
)
def test_an_address_of_another_form_is_refused(cluster, message):
    with pytest.raises(RecipeError, match=message):
        read_address(cluster)
    assert read_address("ray://host:10001") == ("ray", "host:10001")


@pytest.mark.parametrize(("kind", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_package_that_is_missing_or_a_cluster_that_is_silent_says_so(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(RecipeError, match=rf"{package}.* is not installed; .*qtool\[{kind}\]"),
        workers(Spread(cluster=f"{kind}://127.0.0.1:{free_port()}")),
    ):
        pass
