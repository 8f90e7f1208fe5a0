"""A page of a list looks at few tasks, whatever it is filtered by and however many there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import apsw
import pytest

from rae_control.ledger import views
from rae_control.ledger.base import fetch
from rae_control.ledger.sqlite import Ledger, connect
from rae_control.maintenance.backup import check_folder
from tests.integration.control.conftest import ECHO, Api, ManualClock
from tools.ledger_rows import Rows, fill

BLOCK, BLOCKS = 2500, 4
VALUES = {
    "submitter": ("ann", "bob", "nobody"), "state": ("queued", "cancelled", "running"),
    "kind": ("cli", "none"), "node_id": ("none",), "label": ("third=yes", "third=never"),
}  # fmt: skip
FILTERS = [
    dict(zip(names, values, strict=True))
    for number in range(3)
    for names in itertools.combinations(VALUES, number)
    for values in itertools.product(*(VALUES[name] for name in names))
]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apsw.Connection]:
    """Ann's queued tasks and bob's cancelled ones, by turns."""
    folder = tmp_path_factory.mktemp("lists")
    Ledger(folder / "ledger.db", ManualClock()).close()
    for number in range(BLOCKS):
        ann = Rows(f"a{number}", BLOCK, "ann", state="queued")
        fill(folder, ann, Rows(f"b{number}", BLOCK, "bob"))
    assert check_folder(folder, deep=False) == []
    db = connect(folder / "ledger.db", readonly=True)
    yield db
    db.close()


class Steps:
    """How much SQLite does, in tens of its virtual machine's steps."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db, self.most, self._now = db, 0, 0

    def _step(self) -> bool:
        self._now += 1
        self.most = max(self.most, self._now)
        return False

    def __enter__(self) -> Steps:
        self._now = 0
        self._db.set_progress_handler(self._step, 10)
        return self

    def __exit__(self, *_: object) -> None:
        self._db.set_progress_handler(None)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_each_read_of_a_list_is_small_and_all_pages_together_are_right(
    ledger: apsw.Connection, filters: dict[str, str]
) -> None:
    seen, before, steps = list[str](), None, Steps(ledger)
    while True:
        with steps:
            page, before = views.task_list(ledger, filters, 500, before)
        seen += [task.task_id for task in page]
        if before is None:
            break
    assert seen == [row["task_id"] for row in everything(ledger) if passes(row, filters)]
    assert steps.most < 2 * views.LOOK_AT


def everything(db: apsw.Connection) -> list[dict[str, Any]]:
    return fetch(
        db,
        "SELECT t.*, 'third=' || (labels ->> '$.third') AS label"
        " FROM tasks t JOIN specs USING (seq) ORDER BY seq DESC",
    )


def passes(row: dict[str, Any], filters: dict[str, str]) -> bool:
    return all(row[name] == value for name, value in filters.items())


def test_a_label_is_found_by_its_whole_text(api: Api) -> None:
    api.submit({**ECHO, "task_id": "old", "labels": {"run": "a=b", "tag": ""}})
    api.submit({**ECHO, "task_id": "new", "labels": {"run": "c"}})
    for query, wanted in (
        ("label=run%3Da%3Db", ["old"]), ("label=tag%3D", ["old"]), ("label=run%3Dc", ["new"]),
        ("label=run%3Da", []), ("kind=cli&label=run%3Dc", ["new"]), ("kind=cli", ["new", "old"]),
    ):  # fmt: skip
        found = api.rae("GET", f"/tasks?{query}").json
        assert [task["task_id"] for task in found["tasks"]] == wanted, query
        assert "next" not in found
