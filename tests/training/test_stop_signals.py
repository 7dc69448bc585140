"""Signals are noted, or interrupt where they may."""

import os
import signal

import pytest

from regard.training.stop_signals import Interrupted, StopSignals


def send(number):
    os.kill(os.getpid(), number)
    for _ in range(1000):  # Python runs the handler between two instructions
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_noted_and_interrupting(number):
    before = signal.getsignal(number)
    signals = StopSignals()
    with signals.caught() as received:
        send(number)
        assert received == [number]
        with signals.interrupting(False):
            pass
        with pytest.raises(Interrupted) as late, signals.interrupting(True):
            pytest.fail("went on after a signal")
        assert late.value.number == number
    assert signal.getsignal(number) is before
    with signals.caught() as received, pytest.raises(Interrupted), signals.interrupting(True):
        send(number)
        pytest.fail("went on after a signal")
    assert received == [number] and not isinstance(Interrupted(1), Exception)
