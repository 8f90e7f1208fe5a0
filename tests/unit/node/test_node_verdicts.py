"""What each of control's refusals means for the agent."""

from __future__ import annotations

import pytest

from rae_node.errors import Verdict, verdict
from rae_protocol.errors import TABLE, RemoteError
from tests.unit.node.harness import UNREACHABLE


@pytest.mark.parametrize(
    ("rc", "wanted"),
    [
        ("stale_lease", Verdict.STALE), ("superseded", Verdict.SUPERSEDED),
        ("register_again", Verdict.REGISTER), ("bad_signature", Verdict.REGISTER),
        ("not_enrolled", Verdict.UNWELCOME), ("node_revoked", Verdict.UNWELCOME),
        ("rate_limited", Verdict.RETRY), ("internal", Verdict.RETRY), ("disk_low", Verdict.RETRY),
        ("skew", Verdict.RETRY), ("retry_signed", Verdict.RETRY),
        ("whois_unavailable", Verdict.RETRY), ("wrong_peer", Verdict.REFUSED),
        ("invalid_body", Verdict.REFUSED), ("body_too_large", Verdict.REFUSED),
    ],
)  # fmt: skip
def test_each_answer_has_its_meaning(rc: str, wanted: Verdict) -> None:
    assert verdict(RemoteError(rc, rc, TABLE[rc][0], {})) is wanted
    assert verdict(UNREACHABLE) is Verdict.RETRY
