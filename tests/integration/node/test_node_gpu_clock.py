"""The stamps of NVML's samples: whatever clock they count by, each sample counts once (B2)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rae_node.guard.gpu_rules import Program, Resting
from rae_node.guard.sources.gpu import GpuSource
from rae_node.host.nvml import NvmlChild
from tests.fake_nvml import FakeNvml

FILM, TASK = 4001, 4002
WORKS = [FILM, 30, 0, 12]
HOUR = 3600.0
CLOCKS = {
    "since boot": 5_000.0,
    "this machine's": time.time(),
    "12 s behind": time.time() - 12,
    "an hour ahead": time.time() + HOUR,
}


class Looks:
    """A GPU with a film on it, and looks at it by NVML's own clock."""

    def __init__(self, child: NvmlChild, nvml: FakeNvml, start_s: float) -> None:
        self._child, self._nvml, self.at = child, nvml, start_s

    def look(self, *lines: str, back_s: float = 1.5) -> dict[str, Any]:
        """What the child says when NVML shows these lines now."""
        self.show(*lines)
        found: dict[str, Any] = self._child.ask({"back_s": back_s}, 10)["gpus"][0]
        return found

    def show(self, *lines: str) -> None:
        gpu = "gpu GPU-0 16384 3000 95 0 12"
        self._nvml.show(gpu, f"time {int(self.at * 1e6)}", *lines)

    def film(self, age_s: float = 0.0, dec: int = 12) -> str:
        return f"graphics 0 {FILM} 400 30 0 {dec} {age_s}"


@pytest.fixture
def child(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[NvmlChild]:
    for name, value in fake_nvml.env.items():
        monkeypatch.setenv(name, value)
    found = NvmlChild()
    yield found
    found.close()


@pytest.fixture
def gpu(child: NvmlChild, fake_nvml: FakeNvml) -> Looks:
    return Looks(child, fake_nvml, 5_000.0)


@pytest.mark.parametrize("start_s", CLOCKS.values(), ids=CLOCKS)
def test_each_new_sample_counts_by_whatever_clock_it_is_stamped(
    child: NvmlChild, fake_nvml: FakeNvml, start_s: float
) -> None:
    gpu = Looks(child, fake_nvml, start_s)
    for _ in range(5):
        assert gpu.look(gpu.film(age_s=0.3))["shares"] == [WORKS]
        gpu.at += 1


@pytest.mark.parametrize("start_s", CLOCKS.values(), ids=CLOCKS)
def test_a_film_beside_our_task_is_seen_by_whatever_clock_nvml_counts(
    child: NvmlChild, fake_nvml: FakeNvml, tmp_path: Path, start_s: float
) -> None:
    gpu = Looks(child, fake_nvml, start_s)
    now = 0.0
    source = GpuSource(
        True,
        child,
        ours=lambda: [TASK],
        resting=lambda: Resting(frozenset({"firefox"})),
        program={FILM: Program(FILM, "firefox"), TASK: Program(TASK, "python3")}.get,
        pci=tmp_path,
        monotonic=lambda: now,
    )
    for now in range(3):  # noqa: B007 - the source reads it
        gpu.show(gpu.film(age_s=0.3), f"proc 0 {TASK} 2000 60 0 0 0.3")
        reading = source.read()
        gpu.at += 1
    assert reading.code == "gpu_in_use"
    assert any("firefox" in one.who and "12 %" in one.who for one in reading.holders)


def test_a_sample_counts_once(gpu: Looks) -> None:
    assert gpu.look(gpu.film())["shares"] == [WORKS]
    for _ in range(3):
        assert gpu.look(gpu.film())["shares"] == []
    gpu.at += 1
    assert gpu.look(gpu.film())["shares"] == [WORKS]


def test_what_was_before_the_first_look_is_not_present_use(gpu: Looks) -> None:
    for age_s in (60.0, 61.0):
        assert gpu.look(gpu.film(age_s=age_s))["shares"] == []
        gpu.at += 1
    assert gpu.look(gpu.film())["shares"] == [WORKS]


def test_a_sample_that_cannot_be_dated_makes_the_first_look_unknown(gpu: Looks) -> None:
    no_samples = "unsupported nvmlDeviceGetSamples"
    assert gpu.look(gpu.film(age_s=60), no_samples)["shares"] is None
    assert gpu.look(gpu.film(age_s=60), no_samples)["shares"] == []
    gpu.at += 1
    assert gpu.look(gpu.film(), no_samples)["shares"] == [WORKS]


def test_without_a_sample_at_the_first_look_the_next_ones_count(gpu: Looks) -> None:
    assert gpu.look("unsupported nvmlDeviceGetSamples")["shares"] == []
    gpu.at += 1
    assert gpu.look(gpu.film())["shares"] == [WORKS]


@pytest.mark.parametrize("step_s", [-HOUR, -2.5, HOUR], ids=["hour back", "back", "hour ahead"])
def test_work_is_seen_after_nvmls_clock_was_set(gpu: Looks, step_s: float) -> None:
    other = f"graphics 0 {os.getpid()} 100 7 0 0"
    gpu.look(gpu.film(), other)
    gpu.at += 1
    gpu.look(gpu.film(), other)
    gpu.at += step_s
    for second in range(1, 6):
        gpu.at += 1
        # The other program did nothing since: its last sample keeps its stamp.
        left = f"{other} {step_s + second}"
        assert gpu.look(gpu.film(), left)["shares"] == [WORKS]
    assert gpu.look(gpu.film(), left)["shares"] == [], "each sample still counts once"


def test_after_a_long_pause_only_the_time_before_the_newest_sample_counts(gpu: Looks) -> None:
    gpu.look(gpu.film())
    gpu.at += 30
    early = f"graphics 0 {TASK} 100 50 0 0 28"
    assert gpu.look(gpu.film(), early, back_s=5)["shares"] == [WORKS]


def test_a_stamp_that_a_driver_made_up_hides_no_later_sample(gpu: Looks) -> None:
    made_up = f"graphics 0 {TASK} 100 37100 0 50624"
    assert gpu.look(gpu.film(), f"{made_up} {-HOUR}")["shares"][0] == WORKS
    for second in range(1, 4):
        gpu.at += 1
        assert gpu.look(gpu.film(), f"{made_up} {second - HOUR}")["shares"] == [WORKS]


def test_the_whole_gpus_samples_are_read_by_their_own_clock_and_once(gpu: Looks) -> None:
    samples = ("sample 0 90 9", "sample 0 10 1", "sample 0 30 0.1")
    assert gpu.look(*samples)["recent"]["sm"] == 20
    assert gpu.look(*samples)["recent"]["sm"] == 95, "no new sample: the use of this moment"
    gpu.at += 1
    assert gpu.look("sample 0 40")["recent"]["sm"] == 40


def test_each_gpu_has_its_own_stamps(child: NvmlChild, fake_nvml: FakeNvml) -> None:
    gpus = ("gpu GPU-0 16384 300 9", "gpu GPU-1 16384 300 9", f"graphics 0 {FILM} 100 9")
    for second in range(3):  # the samples of the second one are 100 s behind those of the first
        behind = f"graphics 1 {TASK} 100 9 0 0 100"
        fake_nvml.show(f"time {9_000_000_000 + second * 1_000_000}", *gpus, behind)
        found = child.ask({"back_s": 1.5}, 10)["gpus"]
    assert [one["shares"] for one in found] == [[[FILM, 9, 0, 0]], [[TASK, 9, 0, 0]]]
