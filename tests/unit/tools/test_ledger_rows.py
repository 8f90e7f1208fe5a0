"""Tasks that are written by SQL are as control would have them."""

from __future__ import annotations

from pathlib import Path

from rae_control.ledger.sqlite import Ledger
from rae_control.maintenance.backup import check_folder
from rae_protocol.clock import SystemClock
from tools.ledger_rows import Rows, fill


def test_a_filled_ledger_holds_every_promise(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.db", SystemClock()).close()
    fill(
        tmp_path,
        Rows("done", 20, "ann"),
        Rows("queued", 5, "ann", state="queued", expires_at=7e9),
        Rows("root", 1, "bob", state="waiting", not_before=7e9),
        Rows("needs", 5, "bob", state="waiting", needs="root-1"),
    )
    assert check_folder(tmp_path, deep=True) == []
