"""A part of `make bench` that fails costs no result of another part."""

from __future__ import annotations

import pytest

from tools.bench.peers import Peers
from tools.processes import MeshError


def test_a_part_beside_other_queues_says_that_it_needs_them() -> None:
    with pytest.raises(MeshError, match="run make bench without PART"):
        Peers(None).measure("rq Worker")
