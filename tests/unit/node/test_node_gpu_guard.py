"""The GPU's rules: limits, and a rest after the longest run."""

from __future__ import annotations

import math

import pytest

from rae_node.guard.causes import found_in
from rae_node.guard.policy import GpuRun, Reading, Rules, decide, follow_gpu, gpu_must_rest

RULES = Rules(True, True, {"gpu_percent": 90.0, "vram_gb": 14.0})


@pytest.mark.parametrize(
    ("measures", "reasons"),
    [
        ({"gpu_percent": 90.0, "vram_gb": 14.0}, ()),
        ({"gpu_percent": 90.1, "vram_gb": 14.0}, ("gpu_percent_high",)),
        ({"gpu_percent": 90.0, "vram_gb": 14.001}, ("vram_gb_high",)),
    ],
)
def test_gpu_use_equal_to_the_limit_is_safe_and_above_is_not(
    measures: dict[str, float], reasons: tuple[str, ...]
) -> None:
    """Contract: B3."""
    assert decide(RULES, [Reading("gpu", measures=measures)], 0).reasons == reasons


def test_a_figure_that_is_not_a_number_is_never_safe() -> None:
    measured = [Reading("gpu", measures={"gpu_percent": math.nan})]
    assert decide(RULES, measured, 0).reasons == ("gpu_percent_high",)
    assert [stops for _, _, stops in found_in(RULES, measured, {})] == [True]
    now = [Reading("gpu", measures={"gpu_percent": 1.0}, peaks={"gpu_percent": math.nan})]
    assert (decide(RULES, now, 0).safe, decide(RULES, now, 0).may_poll) == (True, False)
    assert [stops for _, _, stops in found_in(RULES, now, {})] == [False]
    without_limit = [Reading("gpu", measures={"other": math.nan}, peaks={"other": math.nan})]
    assert decide(RULES, without_limit, 0).may_poll


def test_after_the_longest_run_the_gpu_rests_and_then_works_again() -> None:
    """Contract: B10."""
    run, rested = None, []
    for minute in range(40):
        working = minute < 20
        run = follow_gpu(run, minute * 60, working, rest_s=600)
        rested.append(gpu_must_rest(run, longest_s=900))
    assert [minute for minute, rests in enumerate(rested) if rests] == list(range(15, 29))


def test_a_rest_in_between_begins_a_new_run() -> None:
    """Contract: B10."""
    run = follow_gpu(None, 0, True, 600)
    assert follow_gpu(run, 599, True, 600) == GpuRun(0, 599)
    assert follow_gpu(run, 600, True, 600) == GpuRun(600, 600)
