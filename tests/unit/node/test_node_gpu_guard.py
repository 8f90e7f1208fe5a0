"""The GPU's guard: foreign use counts, ours does not, a sleeping GPU sleeps on (B2, B3, B10)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rae_node.errors import NodeError
from rae_node.gpu import Gpu, NvmlChild
from rae_node.guard.policy import GpuRun, Reading, Rules, decide, follow_gpu, gpu_must_rest
from rae_node.guard.sources.gpu import GpuSource, Use, judge
from tests.fake_nvml import GPU, LOST, FakeNvml
from tests.unit.node.fakes import MACHINE, Rig, until

RULES = Rules(True, True, {"gpu_percent": 90.0, "vram_gb": 14.0})
NAMES = {7: "Xorg", 8: "blender", 9: "gnome-shell"}


def facts(
    *processes: tuple[int, float | None],
    percent: float = 0,
    used_mb: float = 0,
    shares: list[tuple[int, float]] | None = None,
) -> dict[str, Any]:
    return {
        "percent": percent,
        "used_mb": used_mb,
        "free_mb": 8192 - used_mb,
        "processes": processes,
        "shares": shares,
    }


@pytest.mark.parametrize(
    ("gpu", "ours", "use"),
    [
        (facts(percent=50, used_mb=2048), (), Use(50, 2048, False)),
        (facts((8, 500), percent=5, used_mb=500), (), Use(5, 500, True)),
        (facts((1, 500), percent=100, used_mb=900), {1}, Use(0, 400, False)),
        (facts((1, None), percent=100, used_mb=900), {1}, Use(0, 0, False)),
        (facts((1, None), (8, 9), percent=100, used_mb=900), {1}, Use(100, 900, True)),
        (facts((1, 500), percent=100, shares=[(1, 60), (8, 40)]), {1}, Use(40, 0, False)),
        (facts((7, 300), (9, 200), percent=10), (), Use(10, 0, False)),
        (facts((7, 300), percent=11), (), Use(11, 0, True)),
        (facts((7, 1025), percent=0), (), Use(0, 0, True)),
        (facts((7, None), percent=0), (), Use(0, 0, True)),
        (facts((1, 5), (7, 300), percent=100, shares=[(1, 99), (7, 1)]), {1}, Use(1, 0, False)),
        (facts((1, 5), (7, 300), percent=100, shares=[(1, 70), (7, 30)]), {1}, Use(30, 0, True)),
        (facts((1, 5), (7, 300), percent=100), {1}, Use(0, 0, False)),
        (facts((1, 5), (8, 5), percent=99, shares=[]), {1}, Use(99, 0, True)),
        (facts((1, 5), (8, 5), percent=99, shares=[(1, 30), (8, 9)]), {1}, Use(69, 0, True)),
        # Total and shares are of different moments: alone on the GPU, all of it is ours.
        (facts((1, 5), percent=99, shares=[(1, 30)]), {1}, Use(0, 0, False)),
        (facts((1, 5), (7, 300), percent=99, shares=[(1, 30)]), {1}, Use(0, 0, False)),
        (facts((1, 5), percent=99, shares=[]), {1}, Use(0, 0, False)),
    ],
)
def test_b2_only_use_that_is_not_ours_counts_and_a_desktop_at_rest_is_no_owner(
    gpu: dict[str, Any], ours: Collection[int], use: Use
) -> None:
    assert judge(gpu, ours, lambda pid: NAMES.get(pid, "?")) == use


@pytest.mark.parametrize(
    ("measures", "reasons"),
    [
        ({"gpu_percent": 90.0, "vram_gb": 14.0}, ()),
        ({"gpu_percent": 90.1, "vram_gb": 14.0}, ("gpu_percent_high",)),
        ({"gpu_percent": 90.0, "vram_gb": 14.001}, ("vram_gb_high",)),
    ],
)
def test_b3_equal_to_the_limit_is_safe_and_above_is_not(
    measures: dict[str, float], reasons: tuple[str, ...]
) -> None:
    assert decide(RULES, [Reading("gpu", measures=measures)], 0).reasons == reasons


MakeSource = Callable[..., GpuSource]


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    """A PCI bus with a sound card and no GPU."""
    sound = tmp_path / "pci" / "0000:00:1f.3"
    sound.mkdir(parents=True)
    (sound / "vendor").write_text("0x10de\n")
    (sound / "class").write_text("0x040300\n")
    return tmp_path / "pci"


def plug(bus: Path, number: int, status: str, control: str = "on") -> None:
    device = bus / f"0000:0{number}:00.0"
    (device / "power").mkdir(parents=True, exist_ok=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030000\n")
    (device / "power/runtime_status").write_text(f"{status}\n")
    (device / "power/control").write_text(f"{control}\n")


@pytest.fixture
def source(fake_nvml: FakeNvml, bus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSource]:
    """The source with the fake NVML, in a real child."""
    for name, value in fake_nvml.env.items():
        monkeypatch.setenv(name, value)
    children = []

    def make(expected: bool | None = True, ours: Collection[int] = ()) -> GpuSource:
        children.append(NvmlChild())
        return GpuSource(expected, children[-1], ours=lambda: ours, pci=bus)

    yield make
    for child in children:
        child.close()


def test_several_gpus_are_read_and_the_worst_counts(
    source: MakeSource, fake_nvml: FakeNvml
) -> None:
    fake_nvml.show("gpu GPU-0 16384 1024 10", "gpu GPU-1 16384 512 30")
    found = source().read()
    assert (found.present, found.measures) == (False, {"gpu_percent": 30.0, "vram_gb": 1.0})
    assert found.vram_free_mb == 15360 + 15872


def test_b2_a_process_that_is_not_ours_is_the_owner_and_one_of_ours_is_not(
    source: MakeSource, fake_nvml: FakeNvml
) -> None:
    fake_nvml.show("gpu GPU-0 16384 4096 100", f"proc 0 {os.getpid()} 4000 100")
    shown = {"gpu_percent": 100.0, "vram_gb": 4.0}
    assert source().read() == Reading(
        "gpu", True, "foreign_gpu_process", measures=shown, vram_free_mb=12288.0
    )
    ours = source(ours=[os.getpid()]).read()
    assert (ours.present, ours.measures) == (False, {"gpu_percent": 0.0, "vram_gb": 0.094})
    fake_nvml.show("gpu GPU-0 16384 4096 0", f"graphics 0 {os.getpid()} -1 0")
    assert source().read().present


def test_an_error_of_nvml_makes_blind_until_it_is_mended(
    source: MakeSource, fake_nvml: FakeNvml
) -> None:
    one = source()
    fake_nvml.show(GPU, f"error nvmlDeviceGetUtilizationRates {LOST}")
    with pytest.raises(NodeError, match="GPU is lost"):
        one.read()
    fake_nvml.show(GPU)
    assert one.read().present is False


def test_a_hanging_nvml_is_killed_and_asked_afresh(fake_nvml: FakeNvml, source: MakeSource) -> None:
    source()  # the environment
    fake_nvml.show(GPU, "hang nvmlDeviceGetCount_v2")
    child = NvmlChild()
    with pytest.raises(TimeoutError, match="hangs"):
        child.ask({}, 0.5)
    fake_nvml.show(GPU)
    assert len(child.ask({}, 10)["gpus"]) == 1
    child.close()


def test_a_child_that_ends_is_an_error_and_not_a_free_gpu(tmp_path: Path) -> None:
    program = tmp_path / "ends.py"
    program.write_text("import sys\nsys.stdin.readline()\n")
    with pytest.raises((ValueError, OSError)):
        NvmlChild(program).ask({}, 10)


def test_nvml_is_not_asked_of_a_gpu_that_sleeps(
    source: MakeSource, fake_nvml: FakeNvml, bus: Path
) -> None:
    plug(bus, 0, "suspended", "auto")
    plug(bus, 1, "suspended", "auto")
    one = source()
    assert one.read() == Reading("gpu")
    assert fake_nvml.calls() == []
    plug(bus, 1, "active", "auto")
    fake_nvml.show("gpu GPU-0 16384 9999 99", "gpu GPU-1 16384 1024 1")
    found = one.read()
    assert found.measures == {"gpu_percent": 1.0, "vram_gb": 1.0}
    assert found.vram_free_mb is None  # of the one that sleeps it is not known
    one.read()  # the answer before was whole, and so is its letting go now
    calls = fake_nvml.calls()
    assert "nvmlDeviceGetHandleByIndex_v2" not in calls
    assert calls.count("nvmlInitWithFlags") == 2 and "nvmlShutdown" in calls


def test_a_gpu_on_the_bus_that_nvml_does_not_show_makes_blind(
    source: MakeSource, fake_nvml: FakeNvml, bus: Path
) -> None:
    plug(bus, 0, "active")
    plug(bus, 1, "active")
    fake_nvml.show("gpu GPU-0 16384 0 0")
    with pytest.raises(NodeError, match="1 of the 2 GPUs"):
        source().read()


def test_nvml_stays_open_where_no_gpu_may_sleep(source: MakeSource, fake_nvml: FakeNvml) -> None:
    one = source()
    one.read()
    one.read()
    assert fake_nvml.calls().count("nvmlInitWithFlags") == 1
    assert "nvmlShutdown" not in fake_nvml.calls()


@pytest.mark.parametrize(
    ("expected", "on_bus", "safe"),
    [(False, False, True), (None, False, True), (True, False, False), (False, True, False)],
)
def test_without_nvml_only_a_machine_without_a_gpu_is_safe(
    bus: Path, expected: bool | None, on_bus: bool, safe: bool
) -> None:
    if on_bus:
        plug(bus, 0, "active")
    child = Absent()
    one = GpuSource(expected, child, ours=frozenset, pci=bus)
    for _ in range(2):
        if safe:
            assert one.read() == Reading("gpu")
        else:
            with pytest.raises(NodeError, match="NVML shows none"):
                one.read()
    assert child.asked == (2 if on_bus else 1)


class Absent:
    """What gpu_child.py says where there is no NVML."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.asked += 1
        return {"absent": True}

    def close(self) -> None:
        pass


def test_the_child_says_so_where_nvml_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()  # found first, wherever the machine has a real one
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    child = NvmlChild()
    assert child.ask({}, 10) == {"absent": True}
    child.close()


def test_b10_after_the_longest_run_the_gpu_rests_and_then_works_again() -> None:
    run, rested = None, []
    for minute in range(40):
        working = minute < 20
        run = follow_gpu(run, minute * 60, working, rest_s=600)
        rested.append(gpu_must_rest(run, longest_s=900))
    assert [minute for minute, rests in enumerate(rested) if rests] == list(range(15, 29))


def test_b10_a_rest_in_between_begins_a_new_run() -> None:
    run = follow_gpu(None, 0, True, 600)
    assert follow_gpu(run, 599, True, 600) == GpuRun(0, 599)
    assert follow_gpu(run, 600, True, 600) == GpuRun(600, 600)


def test_b10_a_resting_gpu_is_not_offered_and_cpu_slots_are(make_rig: Callable[..., Rig]) -> None:
    machine = replace(MACHINE, gpus=(Gpu("Fake", 16384.0, "GPU-0", None, None),))
    rig = make_rig(machine=machine, gpu_longest_run_minutes=1e-6, gpu_rest_minutes=60)
    until(lambda: ("cpu0", "gpu0") in rig.control.of("poll"), "both slots are offered")
    rig.control.give(params={"command": "sleep", "args": ["0.5"]}, slot="gpu0")
    rig.outcome()
    until(lambda: rig.control.of("poll")[-1] == ("cpu0",), "the GPU is not offered")
    assert rig.agent.reasons() == ["gpu_rest"]
    assert rig.agent.obstacles() == []
