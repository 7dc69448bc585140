"""Statistics over seeds against scipy, R's `power.t.test`, and cases worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from regard.studies.paired_tests import compare, holm, power_of, seeds_needed


def test_a_case_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3); for 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    found = compare([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (found.difference, found.std, found.pairs) == (2.0, 1.0, 3)
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_p_is_scipys(count):
    random = np.random.default_rng(count)
    one, other = random.normal(70, 1, count), random.normal(70.5, 1, count)
    found = compare(one.tolist(), other.tolist())
    assert found.p == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-9)
    swapped = compare(other.tolist(), one.tolist())
    assert swapped.p == pytest.approx(found.p) and swapped.difference == pytest.approx(-found.difference)


def test_seeds_needed_are_those_of_the_tables():
    """For an effect of d deviations, power 0.8, two-sided 0.05 (Cohen 1988; R: power.t.test(type = "paired"))."""
    assert [seeds_needed(d, 1.0) for d in (0.2, 0.5, 0.8, 1.0, 2.0)] == [199, 34, 15, 10, 5]
    assert seeds_needed(-0.5, 1.0) == 34 and seeds_needed(0.05, 0.1) == 34
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(1e-3, 1.0) is None


def test_power_is_the_share_of_tests_that_find_it():
    random = np.random.default_rng(0)
    samples = random.normal(1.0, 1.2, (4000, 6))
    share = (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()
    assert power_of(1.0, 1.2, 6) == pytest.approx(share, abs=0.02)
    for count in (2, 3, 5, 12):
        limit, shift = stats.t.ppf(0.975, count - 1), 0.9 * math.sqrt(count)
        peer = stats.nct.sf(limit, count - 1, shift) + stats.nct.cdf(-limit, count - 1, shift)
        assert power_of(0.9, 1.0, count) == pytest.approx(peer, abs=1e-3)
    assert power_of(1e9, 1.0, 3) == 1.0 and power_of(1.0, 1.0, 1000) == 1.0


def test_few_or_equal_scores():
    assert compare([3.0], [1.0]).p is None and compare([3.0], [1.0]).difference == 2.0
    same = compare([1.0, 2.0], [1.0, 2.0])
    assert (same.difference, same.p, same.seeds_needed) == (0.0, 1.0, None)
    constant = compare([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
    assert constant.p == 0.0 and constant.seeds_needed == 2
    with pytest.raises(ValueError):
        compare([], [])
    with pytest.raises(ValueError):
        compare([1.0], [1.0, 2.0])


def test_holm():
    """0.01, 0.04, 0.03 (three): 0.03, then 2 x 0.03, then at least that."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == []
