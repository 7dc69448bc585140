"""Signals to all processes of a job, and workers that are killed."""

import itertools
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import replace

import pytest
import torch

from line_task import CONFIG, Line, trainer
from regard.errors import MachineError
from regard.training.checkpoints import newest_checkpoint
from regard.training.data_loader import Augmented, InfiniteBatchSampler, raise_errors, training_loader
from regard.training.distributed import Processes
from regard.training.loop import Stopped

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="process groups")


class Loaded(Line):
    """Numbers that a worker process loads. `act` is called with the number of batches so far."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return index, torch.full((1, 3), float(index))

    def batches(self, start):
        order = InfiniteBatchSampler(6, 1, 1, Processes(0, 1, CPU), start)
        data = Augmented(self, lambda sample, _: sample, seed=1)
        return raise_errors(training_loader(data, order, lambda samples: samples[0], 1, CPU))

    def loss(self, model, batch):
        self.act(len(self.seen))
        return super().loss(model, batch)


def in_a_process_of_its_own(function):
    """The exit code of a forked process that calls `function` as the head of a group."""
    child = os.fork()
    if not child:
        code = 99
        try:
            os.setsid()
            torch.set_num_threads(1)
            code = function()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_to_all_processes_of_a_job(tmp_path, number, early):
    """Ctrl-C and `timeout` reach the loader's workers too, which have to go on until the step is done."""

    def act(count):
        if count == 3:
            os.killpg(0, number)
            time.sleep(0.3)  # time for a worker to die in

    def train():
        # Workers that start before the trainer listens do not have its handlers.
        job = trainer(tmp_path, Loaded(act), replace(CONFIG, accumulate=6))  # six batches a step
        if early:
            loading = job.task.batches(0)
            head = next(loading)
            job.task.batches = lambda start: itertools.chain([head], loading)
        try:
            job.fit()
        except Stopped as error:
            return error.exit_code
        return 98

    assert in_a_process_of_its_own(train) == 128 + number
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step_1"


def test_a_killed_worker_has_a_name(tmp_path):
    """torch tells of it from a signal handler, anywhere in the step."""

    def act(count):
        if count == 3:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                time.sleep(0.01)

    def train():
        try:
            trainer(tmp_path, Loaded(act)).fit()
        except MachineError as error:
            return 0 if error.code == "T10" and "a process that loads images was killed" in error.line else 97
        return 98

    assert in_a_process_of_its_own(train) == 0


def test_a_second_signal_ends_at_once(tmp_path):
    def act(count):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    assert in_a_process_of_its_own(lambda: trainer(tmp_path, Line({2: act})).fit() and 98) == -signal.SIGTERM
