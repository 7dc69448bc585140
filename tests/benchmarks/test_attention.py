"""The benchmark of attention compares equal numbers, and measures what it says."""

import io
import os

import torch
from PIL import Image
from rich.console import Console

from command_line import run as command
from refusals import refused
from regard.benchmarks import attention
from regard.benchmarks.attention import Listing, draw, mechanisms, run, tables
from regard.benchmarks.memory import peak_memory
from regard.errors import MachineError


@torch.no_grad()
def test_the_listing_is_ours():
    layers = mechanisms(5)
    ours, listing = (layers[name] for name in ("augmented convolution", "augmented convolution, the listing"))
    assert isinstance(listing, Listing) and next(iter(listing.parameters())) is next(iter(ours.parameters()))
    x = torch.randn(2, attention.CHANNELS, 5, 5)
    listing.layer.double()
    torch.testing.assert_close(listing(x.double()), ours(x.double()), rtol=0, atol=1e-12)


def test_run_table_and_picture(tmp_path):
    rows = run(1, sides=(3, 4))
    names = list(dict.fromkeys(row.mechanism for row in rows))
    assert len(rows) == 2 * len(names) and {"torch.nn.MultiheadAttention", "axial", "non-local"} <= set(names)
    assert all(row.both > row.forward * 0.5 > 0 and row.memory >= 0 for row in rows)
    text = io.StringIO()
    Console(file=text, width=80).print(*tables(rows))
    assert all(text.getvalue().count(f" {name} ") == 3 for name in names) and "1 x 3²" in text.getvalue()
    draw(rows, tmp_path / "attention.png")
    assert Image.open(tmp_path / "attention.png").size[0] > 1000


def test_memory_of_what_is_held_at_once():
    def hold(_):
        return torch.ones(50 * 2**18) + 1  # twice 50 MiB

    assert 90 * 2**20 < peak_memory(hold) < 130 * 2**20


def test_a_failed_measurement_is_no_number(capfd):
    def fail(_):
        raise MemoryError

    for action in (fail, lambda _: os._exit(3)):
        with refused(MachineError, "memory"):
            peak_memory(action)


def test_different_numbers_are_not_compared(monkeypatch):
    forward = Listing.forward
    monkeypatch.setattr(Listing, "forward", lambda self, x: forward(self, x) + 0.1)
    with refused(MachineError, "augmented convolution", "0.1"):
        run(1, sides=(3,))


def test_words(capsys):
    command(capsys, "benchmark", "attention", "--data", "x").refused(2, "C09", "attention is measured without data")
    command(capsys, "benchmark", "atention").refused(2, "C01", "did you mean 'attention'?")
