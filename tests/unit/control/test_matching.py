"""Requirements against facts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_control.core.matching import (
    NodeFacts,
    canonical_requirements,
    facts_from,
    slot_kind,
    unmet,
)
from rae_protocol.nodes import Capabilities
from rae_protocol.tasks import Requirements, TaskSpec

# A10's file, C2's payload and D4's keys, as nodes send them.
A10 = {"gpu": True, "gpu_model": "RTX_4080", "vram_gb": 16, "ram_gb": 64,
       "llm": ["python-specialist", "code-refactor"]}  # fmt: skip
C2 = {"node_id": "n", "version": "1", "cpu": {"cores": 16, "arch": "x86_64"}, "memory_mb": 64200,
      "disk_free_mb": 400_000, "runners": ["cli", "python"], "tags": ["debian", "cuda"],
      "gpu": [{"vendor": "nvidia", "name": "NVIDIA GeForce RTX 4080", "vram_mb": 16376,
               "cuda": {"version": "12.4", "driver": "550.1"}}]}  # fmt: skip
D4 = {"os": "linux", "cpu": "AMD Ryzen 9 7950X", "ram_gb": 62.7, "gpu_model": "RTX 4080",
      "vram_gb": 16, "python_version": "3.11.7", "ffmpeg_version": "6.1.1",
      "davinci_available": False}  # fmt: skip


def facts(caps: dict[str, object], **more: object) -> NodeFacts:
    parsed = Capabilities.model_validate({**caps, **more})
    return facts_from("n", parsed, trusted=False, slots=None)


def missing(requirements: dict[str, object], node: NodeFacts, kind: str = "cli") -> list[str]:
    spec = TaskSpec(kind=kind, requirements=Requirements.model_validate(requirements))
    return unmet(canonical_requirements(spec), node)


@pytest.mark.parametrize("caps", [A10, C2])
def test_a_16_gb_card_takes_what_asks_for_16_gb(caps: dict[str, object]) -> None:
    node = facts(caps)
    assert missing({"gpu": True, "vram_gb": 16}, node) == []
    assert missing({"gpu_model": "RTX_4080"}, node) == []
    assert missing({"gpu": True, "vram_gb": 24}, node) == ["it needs 24 GB of VRAM"]


def test_every_capability_key_is_usable_as_a_requirement() -> None:
    """Contract: D4."""
    node = facts(D4)
    fitting = {"os": "linux", "cpu": "Ryzen 9", "ram_gb": 32, "gpu_model": "RTX 4080",
               "vram_gb": 16, "python_version": "3.11", "ffmpeg_version": "6"}  # fmt: skip
    assert missing(fitting, node) == []
    for name, wrong in (
        ("os", "windows"), ("cpu", "Xeon"), ("ram_gb", 128), ("gpu_model", "H200"), ("vram_gb", 80),
        ("python_version", "3.1"), ("ffmpeg_version", "6.11"), ("davinci_available", True),
    ):  # fmt: skip
        assert len(missing({**fitting, name: wrong}, node)) == 1, name


@pytest.mark.parametrize("name", ["davinci_available", "ui_session"])
def test_a_requirement_that_is_false_is_a_requirement(name: str) -> None:
    """Contract: D4."""
    without, having = facts(D4, **{name: False}), facts(D4, **{name: True})
    assert missing({name: False}, without) == [] and missing({name: True}, having) == []
    assert missing({name: False}, having) and missing({name: True}, without)
    assert missing({name: False}, NodeFacts("n")), "unknown meets no requirement"


def test_a_task_may_name_operating_systems_and_the_least_memory() -> None:
    """Contract: D4."""
    wanted: dict[str, object] = {"os_in": ["windows"], "min_ram_gb": 8}
    assert missing(wanted, facts(D4)) == ["it needs the system windows"]
    assert missing(wanted, facts(D4, os="windows")) == []


def test_an_unknown_fact_meets_no_requirement() -> None:
    nothing = NodeFacts("n")
    for name, value in (
        ("gpu", True), ("vram_mb", 1), ("ram_gb", 1), ("disk_gb", 1), ("cpu_threads", 1),
        ("os", "linux"), ("arch_in", ["x86_64"]), ("tags", ["t"]), ("models", ["m"]),
        ("llm", ["r"]), ("trusted", True), ("min_versions", {"python": "3"}),
        ("ui_session", True), ("nodes", ["other"]),
    ):  # fmt: skip
        assert missing({name: value}, nothing), name


def test_a_node_that_names_no_runners_runs_every_kind() -> None:
    assert missing({}, NodeFacts("n"), kind="anything") == []
    limited = NodeFacts("n", runners=frozenset({"cli"}))
    assert missing({}, limited, kind="python") == ["it needs the runner python"]


def test_versions_compare_as_numbers() -> None:
    node = facts(D4, versions={"cuda": "12.10"})
    assert missing({"min_versions": {"cuda": "12.9"}}, node) == []
    assert missing({"min_versions": {"cuda": "13"}}, node) == ["it needs cuda 13 or newer"]


@pytest.mark.parametrize(
    ("asked", "told"), [("m", "m:latest"), ("m:latest", "m"), ("host:1/u/m", "host:1/u/m:latest")]
)
def test_a_model_without_a_tag_is_its_latest(asked: str, told: str) -> None:
    assert missing({"models": [asked]}, facts(D4, models=[told])) == []
    assert missing({"models": [asked]}, facts(D4, models=["m:7b"])) != []


def test_models_run_where_the_gpu_is() -> None:
    spec = TaskSpec(kind="llm", params={"role": "python-specialist"})
    requirements = canonical_requirements(spec)
    assert requirements["llm"] == ["python-specialist"]
    assert slot_kind(requirements, facts(A10)) == "gpu"
    assert slot_kind(requirements, NodeFacts("n", slots=("cpu0",))) == "cpu"


@pytest.mark.parametrize(
    ("wish", "have_mb", "fits"),
    [
        ({"vram_mb": 14000}, 13700, False), ({"vram_mb": 14000}, 14000, True),
        ({"vram_mb": 16376}, 16376, True), ({"vram_gb": 16}, 16376, True),
        ({"vram_gb": 16}, 15400, False), ({"vram_gb": 13.5}, 13823, False),
        ({"vram_gb": 13.5}, 13824, True), ({"vram_mb": 8192}, 8188, False),
        ({"vram_gb": 8, "vram_mb": 9000}, 8999, False),
    ],
)  # fmt: skip
def test_a_size_is_a_minimum_and_whole_gb_name_a_size_of_machines(
    wish: dict[str, object], have_mb: float, fits: bool
) -> None:
    gpu = [{"vendor": "nvidia", "name": "RTX", "vram_mb": have_mb}]
    assert (missing(wish, facts({"gpu": gpu})) == []) is fits


def test_sizes_are_spelled_alike_so_that_lanes_stay_few() -> None:
    def canonical(**requirements: object) -> dict[str, object]:
        return canonical_requirements(
            TaskSpec(kind="cli", requirements=Requirements.model_validate(requirements))
        )

    assert canonical(vram_mb=7680) == canonical(vram_gb=7.5) != canonical(vram_gb=8)
    assert canonical(vram_gb=8) == canonical(vram_gb=8.0)
    assert canonical(min_ram_gb=8) == canonical(ram_gb=8)
    assert canonical(os="linux") == canonical(os_in=["linux"])
    assert canonical(tags=["b", "a", "a"]) == canonical(tags=["a", "b"])


@given(
    st.builds(
        Requirements,
        gpu=st.none() | st.booleans(),
        ram_gb=st.none() | st.floats(0, 512),
        vram_mb=st.none() | st.integers(0, 100_000),
        tags=st.none() | st.lists(st.sampled_from("abc"), max_size=3),
        os=st.none() | st.sampled_from(["linux", "windows"]),
    )
)
def test_asking_for_more_never_makes_a_node_fit(requirements: Requirements) -> None:
    node = facts(C2, os="linux")
    less = canonical_requirements(TaskSpec(kind="cli", requirements=requirements))
    asked = requirements.model_copy(update={"trusted": True})
    more = canonical_requirements(TaskSpec(kind="cli", requirements=asked))
    assert set(unmet(less, node)) <= set(unmet(more, node))
