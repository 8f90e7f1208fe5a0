"""The GPU's source with NVIDIA's binding in a real child, and a sleeping GPU (B2, B3, B10)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rae_node.errors import NodeError
from rae_node.guard.gpu_rules import Resting
from rae_node.guard.policy import Reading
from rae_node.guard.sources.gpu import GpuSource
from rae_node.host.nvml import Gpu, NvmlChild
from rae_node.owner.why import obstacles
from tests.fake_nvml import GPU, LOST, FakeNvml
from tests.integration.node.harness import MakeRig
from tests.unit.node.harness import MACHINE
from tests.until import until

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

    def make(
        expected: bool | None = True,
        ours: Collection[int] = (),
        resting: Resting | None = None,
    ) -> GpuSource:
        children.append(NvmlChild())
        consent = resting or Resting()
        return GpuSource(
            expected, children[-1], ours=lambda: ours, resting=lambda: consent, pci=bus
        )

    yield make
    for child in children:
        child.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """Start a process that has this name, and does nothing; returns its pid."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(name: str) -> int:
        program = tmp_path / name
        program.symlink_to("/bin/sleep")
        running.append(subprocess.Popen([program, "600"]))
        return running[-1].pid

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_several_gpus_are_read_and_the_worst_counts(
    source: MakeSource, fake_nvml: FakeNvml
) -> None:
    fake_nvml.show("gpu GPU-0 16384 1024 10", "gpu GPU-1 16384 512 30")
    found = source().read()
    assert (found.present, found.measures) == (False, {"gpu_percent": 30.0, "vram_gb": 1.0})
    assert found.vram_free_mb == 15360 + 15872


def test_a_process_that_is_not_ours_is_the_owner_and_one_of_ours_is_not(
    source: MakeSource, fake_nvml: FakeNvml, start: Callable[[str], int]
) -> None:
    """Contract: B2."""
    pid = start("trainer")
    fake_nvml.show("gpu GPU-0 16384 4096 100", f"proc 0 {pid} 4000 100")
    found = source().read()
    assert (found.present, found.code) == (True, "foreign_gpu_process")
    assert found.measures == {"gpu_percent": 100.0, "vram_gb": 4.0}
    assert (found.peaks, found.vram_free_mb) == ({"gpu_percent": 100.0}, 12288.0)
    who = f"trainer (uid {os.getuid()}, process {pid}) computes on the GPU, 4000 MiB"
    assert [str(holder) for holder in found.holders] == [f"{who}; end it: no consent covers it"]
    ours = source(ours=[pid]).read()
    assert (ours.present, ours.measures) == (False, {"gpu_percent": 0.0, "vram_gb": 0.094})


def test_a_browser_rests_by_its_name_beside_the_compositor_and_works_by_its_decoder(
    source: MakeSource, fake_nvml: FakeNvml, start: Callable[[str], int]
) -> None:
    shell, browser = start("gnome-shell"), start("firefox")
    desktop = (f"graphics 0 {shell} 390 2", f"proc 0 {shell} 390 2")  # NVML's C+G
    fake_nvml.show("gpu GPU-0 16384 800 3", *desktop)
    assert source().read().present is False
    fake_nvml.show("gpu GPU-0 16384 800 3", *desktop, f"graphics 0 {browser} 290 1")
    (holder,) = source().read().holders
    assert holder.code == "foreign_gpu_process" and '"gpu_may_rest: [firefox]"' in holder.ends
    one = source(resting=Resting(frozenset({"firefox"})))
    assert one.read().present is False
    film = f"graphics 0 {browser} 290 2 0 12"
    fake_nvml.show("gpu GPU-0 16384 800 4 0 12", *desktop, film)
    assert one.read().code == "gpu_in_use"  # of two looks, one shows 12 %
    fake_nvml.show("gpu GPU-0 16384 2600 4", *desktop, f"graphics 0 {browser} 1900 1")
    assert "gpu_vram_budget" in {each.code for each in one.read().holders}


def test_the_first_word_of_a_command_line_cannot_write_to_the_terminal(
    source: MakeSource, fake_nvml: FakeNvml
) -> None:
    first = "\x1b]0;all is well\x07\n" + "x" * 100_000
    with subprocess.Popen([first, "600"], executable="/bin/sleep") as process:
        fake_nvml.show(GPU, f"graphics 0 {process.pid} 290 1")
        (holder,) = source().read().holders
        process.kill()
    assert str(holder).startswith(f"?]0;all is well??{'x' * 47} (uid {os.getuid()}, ")
    assert holder.ends == "close it: its name cannot be printed as a line"


@pytest.mark.parametrize("kind", ["encoder", "capture"])
def test_a_stream_counts_at_once_unless_it_is_ours(
    source: MakeSource, fake_nvml: FakeNvml, start: Callable[[str], int], kind: str
) -> None:
    pid = start("sunshine")
    fake_nvml.show(GPU, f"{kind} 0 {pid} 1920 1080")
    found = source().read()
    assert (found.present, found.code) == (True, "gpu_stream")
    assert "sunshine" in found.holders[0].who and "1920x1080" in found.holders[0].who
    assert source(ours=[pid]).read().present is False


def test_the_gpus_use_is_the_mean_of_nvmls_samples_and_the_peak_is_of_now(
    source: MakeSource, fake_nvml: FakeNvml
) -> None:
    samples = [f"sample 0 {percent}" for percent in (0, 0, 60, 4294967295)]
    fake_nvml.show("gpu GPU-0 16384 300 96", *samples)
    found = source().read()
    assert (found.measures["gpu_percent"], found.peaks["gpu_percent"]) == (20.0, 96)


CALLS = [
    f"nvmlDeviceGet{name}"
    for name in (
        "UtilizationRates", "MemoryInfo", "ComputeRunningProcesses_v3",
        "GraphicsRunningProcesses_v3", "ProcessUtilization", "EncoderUtilization",
        "DecoderUtilization", "EncoderSessions", "FBCSessions", "Samples",
    )
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_makes_blind_and_one_that_this_gpu_lacks_only_where_it_is_needed(
    source: MakeSource, fake_nvml: FakeNvml, start: Callable[[str], int], call: str
) -> None:
    desktop = (GPU, f"graphics 0 {start('Xorg')} 300 2")
    one = source()
    fake_nvml.show(*desktop, f"error {call} 999")
    with pytest.raises(NodeError, match="NVML fails"):
        one.read()
    fake_nvml.show(*desktop, f"unsupported {call}")
    if "Memory" in call or "Running" in call:
        with pytest.raises(NodeError, match=rf"{call.removesuffix('_v3')} \(Not Supported\)"):
            one.read()
    else:
        assert one.read().present is False
    fake_nvml.show(*desktop)
    assert one.read().present is False


@pytest.mark.parametrize("code", [4, 13], ids=["no permission", "no such function"])
def test_a_figure_that_no_user_may_ask_for_is_unknown(
    source: MakeSource, fake_nvml: FakeNvml, start: Callable[[str], int], code: int
) -> None:
    shares, decoder = (f"error nvmlDeviceGet{name} {code}" for name in (
        "ProcessUtilization", "DecoderUtilization"))  # fmt: skip
    fake_nvml.show(GPU, shares, decoder)
    assert source().read().present is False
    fake_nvml.show(GPU, f"graphics 0 {start('Xorg')} 300 2", shares, decoder)
    with pytest.raises(NodeError, match=r"Decoder.* update NVIDIA's driver, or close Xorg"):
        source().read()


def test_an_error_of_nvml_makes_blind_until_nvml_works_again(
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
    """What nvml_child.py says where there is no NVML."""

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


def test_a_resting_gpu_is_not_offered_and_cpu_slots_are(make_rig: MakeRig) -> None:
    """Contract: B10."""
    machine = replace(MACHINE, gpus=(Gpu("Fake", 16384.0, "GPU-0", None, None),))
    rig = make_rig(machine=machine, gpu_longest_run_minutes=1e-6, gpu_rest_minutes=60)
    until(lambda: ("cpu0", "gpu0") in rig.control.of("poll"), "both slots are offered")
    rig.control.give(params={"command": "sleep", "args": ["0.5"]}, slot="gpu0")
    rig.outcome()
    until(lambda: rig.control.of("poll")[-1] == ("cpu0",), "the GPU is not offered")
    assert rig.agent.admission.reasons() == ["gpu_rest"]
    assert obstacles(rig.agent) == []
