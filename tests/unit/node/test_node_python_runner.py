"""`python` tasks: parameters are checked before anything starts, against the file's own text."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_node.errors import TaskFailure
from rae_node.package import DATA
from rae_node.runners.python import PythonRunner
from rae_node.runners.signature import Signature, fits, read_signature
from rae_node.workspace.box_paths import below, mount_points
from rae_node.workspace.workspace import Workspace
from tests.integration.node.harness import FakeControl
from tests.messages import faults

Plan = Callable[..., Any]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Plans a call of `run` in a task file with a text."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    workspace = Workspace.create(tmp_path, "t", 1)
    runner = PythonRunner([folder], tmp_path / "workdir")

    def make(text: str, params: dict[str, Any], name: str = "tasks.t:run") -> Any:
        (folder / "t.py").write_text(text)
        task = FakeControl().give("python", params={"task": name, "params": params})
        return runner.plan(task, workspace)

    return make


FITTING = [
    ("a: int", 3), ("a: int", -3), ("a: float", 3), ("a: float", 3.5), ("a: str", ""),
    ("a: bool", False),
    ("a: None", None), ("a: list", [1, "x"]), ("a: dict", {"x": 1}), ("a: list[int]", []),
    ("a: list[int]", [1, 2]), ("a: list[list[str]]", [["x"], []]), ("a: dict[str, int]", {"x": 1}),
    ("a: dict[str, list[float]]", {"x": [1, 2.5]}), ("a: Optional[int]", None),
    ("a: Optional[int]", 1),
    ("a: int | None", None), ("a: int | str | None", "x"), ("a: 'int | None'", 5), ("a: 'int'", 5),
    ("a: Literal['x', 'y']", "y"), ("a: Literal[1, None]", None), ("a: Literal[-1]", -1),
    ("a: Literal[True]", True), ("a: typing.Literal['x']", "x"), ("a: typing.Optional[str]", None),
    ("a: Union[int, str]", "x"), ("a: List[int]", [1]), ("a: typing.Dict[str, int]", {}),
    ("a", [1]),
    ("a: Any", {"x": None}), ("a: typing.Any", 1), ("a: Path", "x"),
    ("a: Sequence[int]", "anything"),
    ("a: list[Path]", ["x"]), ("a: Literal[Color.RED]", "x"),
    ("a: 'no type('", 1), ("*, a: int", 1),
    ("a: int = 5", 1), ("b: int = 1, *, a: int = 5", 1), ("*rest, a: int", 1), ("**more", 1),
    ("**more: int", "x"), ("ctx, a: int", 1), ("a: int, ctx: Any = None", 1),
    ("a: tuple[int, int]", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("takes", "value"), FITTING)
def test_a_parameter_that_fits_passes(plan: Plan, takes: str, value: Any) -> None:
    assert plan(f"def run({takes}): pass", {"a": value}).result == "note"


REFUSED = [
    ("a: int", {"a": "3"}, "'a' is \"3\"; give it as int"),
    ("a: int", {"a": True}, "'a' is true; give it as int"),
    ("a: int", {"a": 3.0}, "'a' is 3.0; give it as int"),
    ("a: int", {"a": None}, "'a' is null; give it as int"),
    ("a: float", {"a": "3.5"}, "give it as float"), ("a: float", {"a": False}, "give it as float"),
    ("a: str", {"a": 3}, "give it as str"), ("a: bool", {"a": 1}, "give it as bool"),
    ("a: bool", {"a": "true"}, "give it as bool"), ("a: None", {"a": 0}, "give it as None"),
    ("a: list", {"a": {}}, "give it as list"), ("a: dict", {"a": []}, "give it as dict"),
    ("a: list[int]", {"a": [1, "x"]}, "'a' is [1, \"x\"]; give it as list[int]"),
    ("a: list[int]", {"a": [True]}, "give it as list[int]"),
    ("a: list[int]", {"a": 1}, "give it as list[int]"),
    ("a: list[list[str]]", {"a": ["x"]}, "give it as list[list[str]]"),
    ("a: dict[str, int]", {"a": {"x": "y"}}, "give it as dict[str, int]"),
    ("a: dict[int, int]", {"a": {"1": 1}}, "give it as dict[int, int]"),
    ("a: Optional[int]", {"a": "x"}, "give it as Optional[int]"),
    ("a: int | None", {"a": "x"}, "give it as int | None"),
    ("a: 'int'", {"a": "x"}, "give it as 'int'"),
    ("a: Literal['x', 'y']", {"a": "z"}, "give it as Literal['x', 'y']"),
    ("a: Literal[1]", {"a": True}, "give it as Literal[1]"),
    ("a: Literal[1]", {"a": 1.0}, "give it as Literal[1]"),
    ("a: Union[int, str]", {"a": []}, "give it as Union[int, str]"),
    ("a: int", {"a": 1, "b": 2}, "'b' is not known to run(a: int); remove it"),
    ("", {"a": 1}, "'a' is not known to run(); remove it"),
    ("a: int, b: str = 'x'", {}, "'a' is missing; give it, as run(a: int, b: str='x') wants"),
    ("*, a", {}, "'a' is missing; give it, as run(*, a) wants"),
    ("a, **more", {"b": 1}, "'a' is missing"),
    ("ctx, a: int = 1", {"ctx": 1}, "'ctx' is given by the node; leave it out"),
    ("**more", {"ctx": 1}, "'ctx' is given by the node"),
    ("*rest", {"rest": [1]}, "'rest' is not known"),
    ("a: str", {"a": ["x" * 500]}, "…; give it as str"),
]  # fmt: skip


def test_of_a_task_that_is_a_link_its_file_is_shown_and_not_the_folder_it_lies_in(
    plan: Plan, tmp_path: Path
) -> None:
    elsewhere = tmp_path.resolve() / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "t.py").touch()
    (tmp_path / "tasks" / "t.py").symlink_to(elsewhere / "t.py")
    places = mount_points(plan("def run(): pass", {}).shown)
    assert elsewhere / "t.py" in places and tmp_path / "tasks" in places
    assert not below(elsewhere, places)


@pytest.mark.parametrize(("takes", "params", "words"), REFUSED)
def test_one_that_does_not_fit_is_named_before_a_process_starts(
    plan: Plan, takes: str, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(TaskFailure) as refused:
        plan(f"def run({takes}): pass", params)
    assert refused.value.rc == "E_INVALID"
    assert words in refused.value.message and "The task 't': params: " in refused.value.message
    assert len(refused.value.message) < 500
    assert faults(refused.value.message.replace("None", "").replace("{}", "")) == []


@pytest.mark.parametrize(
    "text",
    ["@wrapped\ndef run(a: int): pass", "from other import run", "run = print",
     "if True:\n def run(a: int): pass", "async def run(a: int): pass", "def walk(a: int): pass"],
)  # fmt: skip
def test_what_only_running_the_file_tells_is_left_to_the_child(plan: Plan, text: str) -> None:
    assert plan(text, {"a": "x", "b": 1}).result == "note"


def test_the_last_definition_counts_and_nothing_of_the_file_runs(plan: Plan) -> None:
    text = "raise SystemExit('ran')\ndef run(a: int): pass\ndef run(a: str): pass"
    assert plan(text, {"a": "x"})
    with pytest.raises(TaskFailure, match="give it as str"):
        plan(text, {"a": 1})


@pytest.mark.parametrize(
    ("text", "words"),
    [("def run(:\n pass", "t.py, line 1 is no"), ("x = 1\ndef run()\n pass", "t.py, line 2 is no"),
     ("x = '\n", "line 1"), ("x = 1\0", "t.py"), ("# coding: nothing\n", "t.py")],
)  # fmt: skip
def test_a_file_that_is_no_python_is_named_with_its_line(plan: Plan, text: str, words: str) -> None:
    with pytest.raises(TaskFailure) as refused:
        plan(text, {})
    assert refused.value.rc == "E_INVALID" and words in refused.value.message
    assert "fix that file" in refused.value.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)  # fmt: skip
NOTES: list[tuple[str, Callable[[Any], bool]]] = [
    ("int", lambda v: isinstance(v, int) and v is not True and v is not False),
    ("float", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    ("list[str]", lambda v: isinstance(v, list) and all(isinstance(one, str) for one in v)),
    ("dict[str, bool]",
     lambda v: isinstance(v, dict) and all(isinstance(one, bool) for one in v.values())),
    ("Literal[1, 'x', None]", lambda v: v is None or v == "x" or (v == 1 and type(v) is int)),
    ("Optional[Path]", lambda v: True),
]  # fmt: skip


@pytest.mark.parametrize(("note", "meant"), NOTES)
@given(json_values)
def test_fits_says_what_the_annotation_means(
    note: str, meant: Callable[[Any], bool], value: Any
) -> None:
    tree = ast.parse(note, mode="eval").body
    assert fits(value, tree) == meant(value)
    assert fits(value, ast.parse(f"None | {note}", mode="eval").body) == (
        meant(value) or value is None
    )


def test_the_shipped_tasks_say_what_they_take() -> None:
    for file in (DATA / "tasks").glob("*.py"):
        found = read_signature(file)
        assert isinstance(found, Signature) and found.notes and not found.required
        assert all(note is not None for note in found.notes.values())
