"""A role's interface is said once: specs, defaults, the example's inventory and the vault agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import new_vault
from tools.role_readme import ROLES, readme

NAMES = sorted(folder.name for folder in ROLES.iterdir())
EXAMPLE = ROLES.parent / "inventory" / "example"
VAULT = EXAMPLE / "vault.example.txt"
SECRETS = re.compile(r"_(key|token|password)$")
# Which of its kinds a host is follows from its group: playbooks say it.
BY_PLAYBOOKS = {"firewall_kind", "users_kind"}
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "path": (str,), "int": (int,), "float": (int, float), "bool": (bool,),
    "list": (list,), "dict": (dict,),
}  # fmt: skip


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def defaults(role: str) -> dict[str, Any]:
    known: dict[str, Any] = load(ROLES / role / "defaults" / "main.yml")
    return known


def options(role: str) -> dict[str, dict[str, Any]]:
    specs = load(ROLES / role / "meta" / "argument_specs.yml")
    known: dict[str, dict[str, Any]] = specs["argument_specs"]["main"]["options"]
    return known


def example_files() -> list[Path]:
    return [file for file in sorted(EXAMPLE.rglob("*.yml")) if file != VAULT]


def named_in_example() -> set[str]:
    """Every variable that the example sets, or shows behind a `#`."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in example_files())
    return set(re.findall(rf"^(?:# )?((?:{'|'.join(NAMES)})_[a-z0-9_]+):", text, re.MULTILINE))


@pytest.mark.parametrize("role", NAMES)
def test_specs_and_defaults_name_the_same_variables_with_the_same_values(role: str) -> None:
    assert {name: option["default"] for name, option in options(role).items()} == defaults(role)


@pytest.mark.parametrize("role", NAMES)
def test_every_option_is_of_its_type_described_and_named_by_its_role(role: str) -> None:
    for name, option in options(role).items():
        assert name.startswith(f"{role}_")
        assert isinstance(option["default"], TYPES[option["type"]]), name
        assert option["description"], name
        assert option["default"] in option.get("choices", [option["default"]]), name


def entry_points(role: str) -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = load(ROLES / role / "meta" / "argument_specs.yml")[
        "argument_specs"
    ]
    return known


def included() -> set[tuple[str, str]]:
    """(role, entry point) of each `tasks_from` in roles, playbooks and scenarios."""
    text = "\n".join(
        file.read_text(encoding="utf-8")
        for folder in ("roles", "playbooks", "molecule")
        for file in (ROLES.parent / folder).rglob("*.yml")
    )
    return set(re.findall(r"name: (\w+)\n +tasks_from: (\w+)\.yml", text))


def test_every_entry_point_has_a_spec_of_its_own() -> None:
    assert len(included()) > 10
    for role, name in included():
        assert name in entry_points(role), f"{role}: {name}.yml is included and has no spec"
    for role in NAMES:
        for name in entry_points(role):
            assert name == "main" or (ROLES / role / "tasks" / f"{name}.yml").is_file()


@pytest.mark.parametrize("role", NAMES)
def test_a_fact_that_others_read_is_in_the_specs(role: str) -> None:
    """What a role sets under a name without `_` is a return value."""
    described = "\n".join(str(spec) for spec in entry_points(role).values())
    for file in (ROLES / role / "tasks").glob("*.yml"):
        for name in re.findall(r"set_fact:((?:\n +\w+:.*)+)", file.read_text(encoding="utf-8")):
            for fact in re.findall(rf"\b({role}_\w+):", name):
                assert f"C({fact})" in described, f"{file.name} sets {fact}"


@pytest.mark.parametrize(
    "role", [name for name in NAMES if name not in {"common", "mesh", "users"}]
)
def test_every_role_has_a_tag_for_each_phase(role: str) -> None:
    tags = {tag for task in load(ROLES / role / "tasks" / "main.yml") for tag in task["tags"]}
    assert tags == {role, f"{role}_install", f"{role}_configure", f"{role}_service"}


@pytest.mark.parametrize("role", NAMES)
def test_every_role_depends_on_the_shared_variables(role: str) -> None:
    meta = load(ROLES / role / "meta" / "main.yml")
    assert meta["galaxy_info"]["role_name"] == role
    assert meta["dependencies"] == ([] if role == "mesh" else [{"role": "mesh"}])


@pytest.mark.parametrize("role", NAMES)
def test_a_role_s_readme_is_what_its_specs_say(role: str) -> None:
    written = (ROLES / role / "README.md").read_text(encoding="utf-8")
    assert written == readme(role), "make docs writes it again"


def test_the_example_shows_every_variable_and_no_other() -> None:
    known = {name for role in NAMES for name in defaults(role)}
    assert known - BY_PLAYBOOKS - named_in_example() == set()
    assert named_in_example() - known == set()


def test_what_the_example_shows_behind_a_hash_is_the_default() -> None:
    known = {name: value for role in NAMES for name, value in defaults(role).items()}
    for file in example_files():
        for line in file.read_text(encoding="utf-8").splitlines():
            shown = re.match(r"# ([a-z_]+): ([^ ].*)$", line)
            if shown is None or shown[1] not in known:
                continue
            value = yaml.safe_load(shown[2])
            if not isinstance(value, str) or "{{" in value:
                assert value == known[shown[1]], line


def test_secrets_are_in_the_vault_alone() -> None:
    vault = load(VAULT)
    assert list(vault) == list(new_vault.fresh(""))
    assert set(vault.values()) == {""}
    for file in example_files():
        for name, value in load(file).items():
            if SECRETS.search(name):
                named = re.fullmatch(r"\{\{ (vault_[a-z_]+) \| default\(''\) \}\}", value)
                assert named is not None and named[1] in vault, name


def test_a_secret_is_never_printed_by_the_check_of_its_type() -> None:
    known = [known for role in NAMES for known in options(role).items()]
    secret = [
        (name, option)
        for name, option in known
        if SECRETS.search(name) and name != "common_credential_key"
    ]
    assert len(secret) == 7
    assert [name for name, option in secret if option.get("no_log") is not True] == []


@pytest.mark.parametrize("role", NAMES)
def test_no_description_is_a_template_which_ansible_would_evaluate(role: str) -> None:
    text = (ROLES / role / "meta" / "argument_specs.yml").read_text("utf-8")
    for entry in yaml.safe_load(text)["argument_specs"].values():
        options = entry.get("options", {}).values()
        said = [entry.get("description", ""), *(option["description"] for option in options)]
        assert "{{" not in str(said)
