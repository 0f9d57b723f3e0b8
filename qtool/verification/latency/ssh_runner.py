"""Another Linux machine that times files: it needs Python and a runtime, and is reached by ssh.

One connection carries everything: a short command unpacks what it reads to a temporary folder, runs
the timing script there, and removes the folder. Nothing is installed, nothing stays.
"""

import json
import shlex
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qtool.errors import RecipeError
from qtool.verification.latency.runtimes import RUNTIMES, SCRIPT, Job, JobResult, Machine
from qtool.verification.latency.timing_script import JOB_SECONDS, shorten

# ssh itself: no question is asked, and a dead connection ends within a minute.
OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4")
NO_CONNECTION, NO_COMMAND = 255, 127
"""Exit codes of ssh where it failed itself, and of the other machine's shell."""

PROBE_SECONDS = 60
SLOWEST_LINK = 100_000
"""Bytes a second; a slower transfer counts as stuck."""
KEY = ("latency", "runner")

# A hangup or a kill leaves through the `with`, which removes the folder; temporary files of the
# runtimes lie in it too.
BOOTSTRAP = """\
import os, signal, subprocess, sys, tarfile, tempfile
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, lambda *ignored: sys.exit(1))
with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    tarfile.open(fileobj=sys.stdin.buffer, mode="r|").extractall(folder, **safe)
    command = [sys.executable, folder + "/" + sys.argv[1], sys.argv[2], folder]
    os.environ["TMPDIR"] = folder
    sys.exit(subprocess.call(command, stdin=subprocess.DEVNULL))
"""


@dataclass(frozen=True)
class SshRunner:
    """A machine that ``ssh HOST`` reaches without a password.

    Attributes:
        host: as ssh takes it: a name of its configuration, or user@name.
        python: the interpreter there.
    """

    host: str
    python: str = "python3"

    @property
    def name(self) -> str:
        """The machine in the report."""
        return f"ssh:{self.host}"

    def probe(self) -> Machine:
        """See :meth:`Runner.probe`."""
        lines = list(self._run("probe", {}, PROBE_SECONDS))
        machine = Machine(**json.loads(lines[-1]))
        if "onnxruntime" not in machine.versions:
            raise RecipeError(
                f"{self.host} has Python {machine.python} but no onnxruntime; run there: "
                f"{RUNTIMES['onnxruntime'].install}",
                key=KEY,
            )
        return machine

    def perform(self, jobs: Sequence[Job], folder: Path) -> Iterator[JobResult]:
        """See :meth:`Runner.perform`."""
        content: dict[str, Path] = {}

        def place(name: str, path: Path) -> str:
            return f"{name}/{path.name}"

        for job in jobs:
            for name, paths in job.files.items():
                # External data lies beside the model or below it.
                content |= {f"{name}/{path.relative_to(paths[0].parent)}": path for path in paths}
            content |= {place(name, path): path for name, path in job.feeds.items()}
        content["jobs.json"] = folder / "jobs.json"
        content["jobs.json"].write_text(json.dumps([job.to_json(place) for job in jobs]))
        upload = sum(path.stat().st_size for path in content.values()) / SLOWEST_LINK
        for line in self._run("serve", content, JOB_SECONDS + upload):
            yield JobResult(**json.loads(line))

    def _run(self, command: str, content: dict[str, Path], seconds: float) -> Iterator[str]:
        """Run a command of the script there; yield the lines that it prints.

        Args:
            command: of the script.
            content: path in the folder there -> file that is sent.
            seconds: until the next line at most.
        """
        remote = shlex.join([self.python, "-c", BOOTSTRAP, SCRIPT.name, command])
        options = [part for option in OPTIONS for part in ("-o", option)]
        lines = 0
        with tempfile.TemporaryFile("w+") as errors:
            with _process(["ssh", *options, "--", self.host, remote], errors) as ssh:
                sender = threading.Thread(target=_send, args=(ssh, content), daemon=True)
                sender.start()
                assert ssh.stdout is not None
                with _Watchdog(ssh, seconds) as watchdog:
                    for line in ssh.stdout:
                        watchdog.restart()
                        lines += 1
                        yield line.decode()
                    code = ssh.wait()
                sender.join()
            errors.seek(0)
            text = shorten(errors.read()[-2000:])
        if watchdog.fired:
            raise self._error(f"no answer from {self.host} within {seconds:.0f} s")
        if code or not lines:
            raise self._failure(code, text)

    def _failure(self, code: int, text: str) -> RecipeError:
        if code == NO_CONNECTION:
            return self._error(
                f"no connection to {self.host}: {text}; `ssh {self.host} true` must work without "
                "a question: a key, and a known host"
            )
        if code == NO_COMMAND:
            return self._error(
                f"{self.host} has no {self.python}: {text}; install Python 3.8 or newer there, or "
                "name its interpreter in latency.python"
            )
        return self._error(f"{self.python} on {self.host} ended with exit code {code}: {text}")

    def _error(self, text: str) -> RecipeError:
        return RecipeError(text, key=KEY)


@contextmanager
def _process(command: list[str], errors: IO[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Start ssh, and end it in any case."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
    except FileNotFoundError as error:
        raise RecipeError(
            "found no ssh client; install one (apt install openssh-client)", key=KEY
        ) from error
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _send(process: "subprocess.Popen[bytes]", content: dict[str, Path]) -> None:
    """Send the script and files as a tar stream; where the other side has ended, it says why."""
    assert process.stdin is not None
    with (
        suppress(BrokenPipeError),
        process.stdin as pipe,
        tarfile.open(fileobj=pipe, mode="w|") as archive,
    ):
        archive.add(SCRIPT, SCRIPT.name)
        for name, path in content.items():
            archive.add(path, name)


class _Watchdog:
    """Kills a process that is silent for too long."""

    def __init__(self, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        self._process, self._seconds = process, seconds
        self.fired = False
        self._timer = self._start()

    def _start(self) -> threading.Timer:
        timer = threading.Timer(self._seconds, self._fire)
        timer.daemon = True
        timer.start()
        return timer

    def _fire(self) -> None:
        self.fired = True
        self._process.kill()

    def restart(self) -> None:
        """Begin to count anew."""
        self._timer.cancel()
        self._timer = self._start()

    def __enter__(self) -> "_Watchdog":
        return self

    def __exit__(self, *ignored: object) -> None:
        self._timer.cancel()
