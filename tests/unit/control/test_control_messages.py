"""Every message says what, why and what to do: control's and raectl's."""

from __future__ import annotations

from pathlib import Path

import rae_control
from rae_control import errors
from tests.messages import faults, written

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
ERRORS = frozenset({kind.__name__ for kind in KINDS} | {"UsageError"})


def test_every_message_in_the_code_tells_a_way_out() -> None:
    found = list(written(Path(rae_control.__file__).parent, ERRORS))
    assert len(found) > 20
    assert [(where, text, wrong) for where, text in found if (wrong := faults(text))] == []


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    codes = [kind.rc for kind in KINDS]
    assert len(codes) == len(set(codes))
    assert 0 not in codes
