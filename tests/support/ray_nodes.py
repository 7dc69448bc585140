"""Two Ray nodes on this machine, each in a network namespace of its own; a veth pair joins them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

HEAD, OTHER = "10.213.7.1", "10.213.7.2"
PORT = 6399
ENVIRONMENT = {
    "RAY_ADDRESS": f"{HEAD}:{PORT}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # nobody else reaches the namespaces
    "OMP_NUM_THREADS": "1",
}


def can_make_namespaces() -> bool:
    """Return whether this process may make network namespaces."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    return os.geteuid() == 0 and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


class Nodes:
    """Two nodes of one CPU each. Their namespaces are named after this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"regard-{os.getpid()}-{letter}" for letter in "ab"]

    def run(self, words: Sequence[str], *, node: int = 0, output: Path) -> subprocess.Popen[bytes]:
        """Start `python -m WORDS` on a node; both of its streams go to files, `output` and one beside it, `.err`."""
        command = ["ip", "netns", "exec", self.names[node], sys.executable, "-m", *words]
        with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
            return subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **ENVIRONMENT})

    def processes(self, node: int, name: str) -> list[int]:
        """Return the processes of a node whose command line holds a text."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[node]], capture_output=True, text=True, check=True)
        found = []
        for process in map(int, listed.stdout.split()):
            with suppress(OSError):
                if name in Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                    found.append(process)
        return found

    def kill(self, node: int, name: str = "") -> list[int]:
        """Kill the processes of a node whose command line holds a text; return them."""
        found = self.processes(node, name)
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return found

    def start(self) -> None:
        """Make the namespaces and start Ray in both."""
        a, b = self.names
        ends = [f"rg{os.getpid()}a", f"rg{os.getpid()}b"]
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "netns", a, "type", "veth", "peer", "name", ends[1], "netns", b)
        for name, end, address in zip(self.names, ends, (HEAD, OTHER), strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        common = ["ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--object-store-memory=200000000"]
        head = ["--head", f"--port={PORT}", f"--node-ip-address={HEAD}", "--include-dashboard=false"]
        self.run([*common, *head, f"--temp-dir={self.folder}"], output=self.folder / "head.log")
        self._wait("head.log", "Ray runtime started")
        other = [f"--address={HEAD}:{PORT}", f"--node-ip-address={OTHER}"]
        self.run([*common, *other], node=1, output=self.folder / "other.log")
        self._wait("other.log", "Ray runtime started")

    def end(self) -> None:
        """Kill all processes of the namespaces, and delete them."""
        for node, name in enumerate(self.names):
            with suppress(subprocess.CalledProcessError):
                while self.kill(node):
                    time.sleep(0.2)
                _ip("netns", "delete", name)

    def _wait(self, name: str, text: str) -> None:
        log, until = self.folder / name, time.monotonic() + 180
        while text not in (told := log.read_text()):
            if time.monotonic() > until:
                raise TimeoutError(f"no {text!r} in {log}: {told}{log.with_suffix('.err').read_text()}")
            time.sleep(0.5)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Yield two nodes that run."""
    with tempfile.TemporaryDirectory(prefix="rg", ignore_cleanup_errors=True) as folder:  # names of sockets are short
        nodes = Nodes(Path(folder))
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.end()
