"""config.yaml and runtime.yaml: the contract's files load, and mistakes are named (A10, B1)."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from rae_node.config.files import (
    NodeConfig,
    dev_config,
    dev_runtime,
    load_both,
    load_node_config,
    load_runtime,
    refuse_public_http,
)
from rae_node.config.tuning import Settings, apply_settings
from rae_node.diagnostics.config_check import check_file
from rae_node.errors import ConfigError
from rae_protocol.yamlfile import MAX_BYTES, read_overrides, read_yaml

KUBUS = """
node_id: kubus-gpu-01
trusted: true
capabilities:
  gpu: true
  gpu_model: RTX_4080
  vram_gb: 16
  ram_gb: 64
  llm:
    - python-specialist
    - code-refactor
heartbeat_interval_sec: 30
rae_endpoint: http://100.x.x.x:8080
"""
JULKA = (KUBUS.replace("kubus", "julka").replace("trusted: true", "trusted: false")).replace(
    "    - code-refactor\n", ""
)
RUNTIME = """
automation: {enabled: true, auto_start: true}
safety: {detect_active_user: true, idle_required_minutes: 10, max_cpu_percent: 80,
  max_gpu_percent: 90, max_vram_gb: 14, cooldown_minutes: 15}
execution: {poll_interval_sec: 45, heartbeat_interval_sec: 30, task_timeout_minutes: 180,
  retry_on_disconnect: true}
"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    config, runtime = tmp_path / "config.yaml", tmp_path / "runtime.yaml"
    config.write_text(KUBUS)
    runtime.write_text(RUNTIME)
    return config, runtime


def test_both_existing_config_files_load_unchanged(tmp_path: Path) -> None:
    """Contract: A10."""
    file = tmp_path / "config.yaml"
    file.write_text(KUBUS)
    kubus = load_node_config(file)
    assert (kubus.node_id, kubus.trusted, kubus.capabilities.vram_gb) == ("kubus-gpu-01", True, 16)
    assert kubus.capabilities.llm == ["python-specialist", "code-refactor"]
    assert kubus.min_isolation == "bubblewrap"
    file.write_text(JULKA)
    julka = load_node_config(file)
    assert (julka.trusted, julka.capabilities.llm) == (False, ["python-specialist"])


def test_the_contracts_runtime_file_loads(pair: tuple[Path, Path]) -> None:
    """Contract: B1."""
    _, runtime = load_both(*pair)
    assert (runtime.safety.cooldown_minutes, runtime.execution.poll_interval_sec) == (15, 45)


def leaves(data: dict[str, Any]) -> list[tuple[str, str]]:
    return [(section, name) for section, values in data.items() for name in values]


@pytest.mark.parametrize(("section", "name"), leaves(yaml.safe_load(RUNTIME)))
def test_each_missing_field_is_named(tmp_path: Path, section: str, name: str) -> None:
    """Contract: B1."""
    data = yaml.safe_load(RUNTIME)
    del data[section][name]
    file = tmp_path / "runtime.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=rf"yaml:\d+: {section}\.{name}: is missing; add it"):
        load_runtime(file)


def test_an_unknown_field_is_named_with_those_that_exist(tmp_path: Path) -> None:
    """Contract: B1."""
    data = copy.deepcopy(yaml.safe_load(RUNTIME))
    data["safety"]["max_cpu"] = 5
    file = tmp_path / "runtime.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=r"safety\.max_cpu: .*known here are .*max_cpu_percent"):
        load_runtime(file)


def test_different_heartbeats_name_both_files(pair: tuple[Path, Path]) -> None:
    """Contract: B1."""
    pair[0].write_text(KUBUS.replace("interval_sec: 30", "interval_sec: 15"))
    with pytest.raises(ConfigError, match=r"is 15 in .*config\.yaml and 30 in .*runtime\.yaml"):
        load_both(*pair)


def test_an_override_reaches_both_files_and_takes_fractions(pair: tuple[Path, Path]) -> None:
    pairs = ["heartbeat_interval_sec=0.5", "max_concurrent_cpu=3", "poll_wait_sec=2"]
    given = read_overrides(pairs, ConfigError)
    settings, rest = apply_settings(given)
    config, runtime = load_both(*pair, rest)
    assert settings.poll_wait_sec == 2
    assert config.heartbeat_interval_sec == runtime.execution.heartbeat_interval_sec == 0.5
    assert config.max_concurrent_cpu == 3


@pytest.mark.parametrize("pair_text", ["nonsense=1", "poll_wait_sec=many", "poll_wait_sec", "=1"])
def test_a_wrong_override_is_refused(pair: tuple[Path, Path], pair_text: str) -> None:
    with pytest.raises(ConfigError, match=r"--set "):
        load_both(*pair, apply_settings(read_overrides([pair_text], ConfigError))[1])


def test_every_period_of_the_contract_is_the_default() -> None:
    defaults = Settings()
    assert (defaults.poll_wait_sec, defaults.guard_busy_sec, defaults.kill_confirm_sec) == (
        25,
        1,
        0.3,
    )
    assert defaults.heartbeat_jitter == 0.1
    runtime = dev_runtime()
    assert runtime["execution"]["heartbeat_interval_sec"] == 30
    assert runtime["execution"]["task_timeout_minutes"] == 180


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://8.8.8.8:80",
        "ftp://127.0.0.1",
        "http://",
        "http://u:p@127.0.0.1:1",
        "http://10.0.0.1:1",
    ],
)
def test_an_endpoint_beyond_tailnet_and_loopback_is_refused(tmp_path: Path, endpoint: str) -> None:
    """Contract: Z7."""
    file = tmp_path / "config.yaml"
    file.write_text(KUBUS.replace("http://100.x.x.x:8080", endpoint))
    with pytest.raises(ConfigError, match="rae_endpoint"):
        load_node_config(file)


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:1", "http://100.64.0.1:8080", "http://[fd7a:115c:a1e0::1]:80",
     "https://control.example:443", "http://[::1]:80", "http://control:8080"],
)  # fmt: skip
def test_loopback_tailscale_and_tls_are_fine(tmp_path: Path, endpoint: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(KUBUS.replace("http://100.x.x.x:8080", endpoint))
    assert load_node_config(file).rae_endpoint == endpoint


def test_a_name_is_allowed_by_its_addresses() -> None:
    refuse_public_http("http://control:8080", lambda _: ["100.100.1.2", "fd7a:115c:a1e0::5"])
    with pytest.raises(ValueError, match=r"93\.184\.216\.34 is neither"):
        refuse_public_http("http://control:8080", lambda _: ["100.100.1.2", "93.184.216.34"])


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:11435", "https://127.0.0.1:1", "http://127.0.0.1"]
)
def test_models_are_asked_on_this_machine_only(tmp_path: Path, url: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(KUBUS + f"ollama_url: {url}\n")
    with pytest.raises(ConfigError, match="ollama_url"):
        load_node_config(file)


def test_check_file_reads_an_allow_list(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("- path: /usr/bin/true\n")
    bad.write_text("- path: true\n")
    assert check_file(good) == "allow-list"
    with pytest.raises(ConfigError, match="path"):
        check_file(bad)


def test_check_file_tells_the_two_apart(pair: tuple[Path, Path]) -> None:
    assert [check_file(file) for file in pair] == ["config.yaml", "runtime.yaml"]


def test_a_node_without_any_slot_is_refused(pair: tuple[Path, Path]) -> None:
    pair[0].write_text(KUBUS + "max_concurrent_cpu: 0\nmax_concurrent_gpu: 0\n")
    with pytest.raises(ConfigError, match="both 0"):
        load_both(*pair)


ODD = ['!!int ""', "!!bool foo", "!!timestamp foo", "!!float x", "&a 1", "{<<: {b: 1}}", "[" * 3000]


@pytest.mark.parametrize("odd", ODD)
def test_yaml_that_is_none_of_a_settings_file_is_refused_with_its_line(
    tmp_path: Path, odd: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"node_id: n1\ntrusted: {odd}\n")
    line = "" if odd.startswith("[") else ":2"
    with pytest.raises(ConfigError, match=rf"config.yaml{line}: this is no valid YAML"):
        read_yaml(file, ConfigError)
    with pytest.raises(ConfigError, match="put it in quotes"):
        read_overrides([f"trusted={odd}"], ConfigError)


def test_a_file_of_aliases_is_never_built(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a: &a [1, 1]\nb: [*a, *a]\n")
    with pytest.raises(ConfigError, match=r":1: .*write the value out"):
        read_yaml(file, ConfigError)


def test_only_a_regular_file_of_a_small_size_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="no regular file"):
        read_yaml(file, ConfigError)
    file.unlink()
    with file.open("wb") as handle:
        handle.truncate(MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than"):
        read_yaml(file, ConfigError)


def test_a_gpu_rest_of_no_length_is_refused() -> None:
    """Contract: B10."""
    data = {**dev_config("n1", "http://127.0.0.1:1"), "gpu_rest_minutes": 0}
    with pytest.raises(ValueError, match="gpu_rest_minutes"):
        NodeConfig.model_validate(data)


@pytest.mark.parametrize(
    "written", ["010", "1:30", "0x10", "0b11", "1_000", "190:20:30.15", "!!int 010", "!!float 1:30"]
)
def test_a_number_of_a_file_is_decimal_or_refused_with_its_line(
    pair: tuple[Path, Path], written: str
) -> None:
    config, runtime = pair
    name = "idle_required_minutes: "
    runtime.write_text(RUNTIME.replace(f"{name}10", f"{name}{written}"))
    with pytest.raises(ConfigError, match=r"runtime\.yaml:3: .*(decimal|no valid YAML)"):
        load_runtime(runtime)
    config.write_text(f"{KUBUS}max_concurrent_cpu: {written}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:14: .*(decimal|no valid YAML)"):
        load_node_config(config)


def test_a_duration_that_yaml_would_read_as_octal_is_refused(pair: tuple[Path, Path]) -> None:
    config, _ = pair
    config.write_text(f"{KUBUS}workspace: {{keep_failed: 010}}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:14: .*no duration"):
        load_node_config(config)


def test_decimal_numbers_stay_numbers_and_all_else_is_text_as_written(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("[10, -3, 0, 1.5, .5, 1.0e+3, 010, 1:30, 22:00, 0x10, 1_000, 2030-01-02]\n")
    numbers = [10, -3, 0, 1.5, 0.5, 1000.0]
    assert read_yaml(file, ConfigError).value == [
        *numbers,
        "010",
        "1:30",
        "22:00",
        "0x10",
        "1_000",
        "2030-01-02",
    ]
    for value in (10, -3, 1.5, 1e20, 1e-7, "010", "1e3", "22:00", "0x10", "10", "2030-01-02"):
        file.write_text(yaml.safe_dump([value]))
        assert read_yaml(file, ConfigError).value == [value]  # what Ansible writes comes back


def test_a_wrong_override_is_not_blamed_on_a_line_of_the_file(pair: tuple[Path, Path]) -> None:
    for name in ("max_concurrent_cpu", "max_cpu_percent"):
        with pytest.raises(ConfigError, match=rf"^--set: (safety\.)?{name}: must be"):
            load_both(*pair, {name: "many"})
