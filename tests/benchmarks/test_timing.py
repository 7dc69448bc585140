"""What the times of benchmarks are compared with."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from regard.benchmarks.timing import large_products


def test_operations_of_large_products_are_those_that_torch_counts():
    for way, count in large_products().items():
        with FlopCounterMode(display=False) as counter:
            way(0)
        assert counter.get_total_flops() == count
