"""Train the runs of a study in parallel processes; what is there is kept, what was stopped is resumed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from regard.errors import IS, counted
from regard.safe_files import hold_lock
from regard.studies.plan import Training
from regard.training.launch import launch_command, thread_environment

WAIT = 2.0  # seconds between looks at a run that another process trains


@dataclass(frozen=True)
class Failure:
    """A run that failed. line: what it said last. code: its exit code."""

    training: Training
    line: str
    code: int


def is_finished(run: Path) -> bool:
    return (run / "metrics.json").is_file()


class Trainer:
    """Trains runs, `jobs` at a time, each in its own process.

    Args:
        store: folder of the runs.
        environment: of the processes.
        tell: prints a line.
    """

    def __init__(self, store: Path, jobs: int, environment: dict[str, str], tell: Callable[[str], None]) -> None:
        self.store, self.jobs, self.environment, self.tell = store, jobs, environment, tell
        self._processes: set[subprocess.Popen[str]] = set()
        self._guard = threading.Lock()
        self._stopped = False
        self._done, self._seconds = 0, 0.0  # runs trained here, and their time

    def train(self, trainings: Sequence[Training]) -> list[Failure]:
        """Train those that are not finished. A run whose teacher failed is not started; the others go on.

        Raises:
            KeyboardInterrupt, SystemExit: interrupted; every running process has saved its state and ended.
        """
        self.store.mkdir(parents=True, exist_ok=True)
        waiting = [one for one in trainings if not is_finished(one.folder(self.store))]
        total, kept = len(waiting), len(trainings) - len(waiting)
        if kept:
            self.tell(f"{counted(kept, 'run', of=len(trainings), verb=IS)} there already")
        failures: list[Failure] = []
        running: dict[Future[Failure | None], Training] = {}
        with self._stopping(), ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or running:
                    failures += self._skipped(waiting, failures)
                    ready = self._ready(waiting, running.values())
                    for training in ready[: self.jobs - len(running)]:
                        waiting.remove(training)
                        running[pool.submit(self._train, training)] = training
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        training, failure = running.pop(future), future.result()
                        failures += [] if failure is None else [failure]
                        self._report(training, failure, total, len(waiting) + len(running))
            except BaseException:
                self._stop()
                raise
        return failures

    def _ready(self, waiting: Sequence[Training], running: Collection[Training]) -> list[Training]:
        """Those whose teachers are not still to be trained."""
        still = {one.name for one in (*waiting, *running)}
        return [one for one in waiting if still.isdisjoint(one.before)]

    def _skipped(self, waiting: list[Training], failures: Sequence[Failure]) -> list[Failure]:
        """Take out and return the runs that need one that failed."""
        failed = {failure.training.name for failure in failures}
        found = [one for one in waiting if not failed.isdisjoint(one.before)]
        for training in found:
            waiting.remove(training)
            self.tell(f"not trained: {training.row}, seed {training.seed}: the run that it needs failed")
        return [Failure(training, "the run that it needs failed", 0) for training in found]

    def _train(self, training: Training) -> Failure | None:
        folder = training.folder(self.store)
        started = time.monotonic()

        def busy(holder: str) -> None:
            self.tell(f"{training.row}, seed {training.seed}: waiting for {holder}, which trains the same run")

        with hold_lock(self.store / f".{folder.name}.lock", on_busy=busy):
            self._wait_for_orphan(folder, busy)
            if is_finished(folder):
                return None
            resumed = (folder / "config.yaml").is_file()
            words = ["--resume", "--output", str(folder)] if resumed else training.arguments(self.store)
            code, said = self._run(["train", *words, "--quiet"])
        with self._guard:
            self._done, self._seconds = self._done + 1, self._seconds + time.monotonic() - started
        if code == 0:
            return None
        line = next((line for line in reversed(said.splitlines()) if line.strip()), "no message")
        return Failure(training, f"ended by signal {-code}" if code < 0 else line, 6 if code < 0 else code)

    def _wait_for_orphan(self, folder: Path, busy: Callable[[str], None]) -> None:
        """Wait until no process trains this run: one goes on if its study was killed."""
        told = False

        def refuse(holder: str) -> None:
            raise BlockingIOError(holder)

        while folder.is_dir() and not self._stopped:
            try:
                with hold_lock(folder / ".lock", on_busy=refuse):
                    return
            except BlockingIOError as holder:
                if not told:
                    busy(str(holder))
                told = True
                time.sleep(WAIT)

    def _run(self, words: list[str]) -> tuple[int, str]:
        """Run `regard WORDS`; return the exit code and what it wrote to stderr."""
        with self._guard:
            if self._stopped:
                return 130, "interrupted"
            # In a session of its own: Ctrl-C reaches the study alone, which stops its processes once.
            process = subprocess.Popen(
                launch_command(words, 1), env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
            self._processes.add(process)
        said = process.communicate()[1]
        with self._guard:
            self._processes.discard(process)
        return process.returncode, said

    def _stop(self) -> None:
        """Ask all processes to save and end; runs that wait do not start."""
        with self._guard:
            self._stopped = True
            for process in self._processes:
                process.terminate()
        self.tell("stopping: the running trainings save their state")

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Let SIGTERM end the study as Ctrl-C does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _report(self, training: Training, failure: Failure | None, total: int, left: int) -> None:
        what = f"{training.row}, seed {training.seed}"
        if failure is not None:
            self.tell(f"failed: {what} — {failure.line}")
        minutes = self._seconds / max(1, self._done) * left / min(self.jobs, max(1, left)) / 60
        remaining = f", about {counted(round(minutes), 'minute')} left" if minutes >= 1 else ""
        self.tell(f"{counted(total - left, 'run', of=total)}{remaining}: {what}")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment_of(device: str) -> dict[str, str]:
    """Return the environment of a run: one thread on a CPU, so that scores do not depend on the number of jobs."""
    found = thread_environment(1)
    return {**found, "OMP_NUM_THREADS": "1"} if device == "cpu" else found
