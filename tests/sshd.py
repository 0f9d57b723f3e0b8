"""A private ssh server on this machine, and an ssh client that knows only it."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HOST = "box"
START_SECONDS = 10


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        bin: folder with the ``ssh`` command that reaches it as HOST; to be put on PATH.
        temporary: folder for temporary files of what runs there.
    """

    bin: Path
    temporary: Path


@contextmanager
def private_sshd(folder: Path) -> Iterator[Server]:
    """Run a server with a key of its own until the block ends; skip where there is none."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    ssh = shutil.which("ssh")
    if sshd is None or ssh is None:
        pytest.skip("no sshd and ssh; apt install openssh-server openssh-client")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd of root refuses to start without it
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = folder / "remote_tmp"
    temporary.mkdir()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nSetEnv TMPDIR={temporary}\n"
    )
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "ssh_config").write_text(
        f"Host {HOST}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user_key\n"
        f"Host stranger\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/none\n"
        f"Host *\n  UserKnownHostsFile {folder}/known_hosts\n  IdentitiesOnly yes\n"
        "  IdentityAgent none\n"
    )
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {folder}/ssh_config "$@"\n')
    (bin_folder / "ssh").chmod(0o755)
    command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "sshd.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(server, port, folder / "sshd.log")
        yield Server(bin_folder, temporary)
    finally:
        server.terminate()
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    server.kill()
    pytest.skip(f"sshd does not start: {log.read_text()[-500:]}")
