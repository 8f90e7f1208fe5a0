"""`docs/protocol.md` says what the code does: its tables, its vectors, its commands."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rae_protocol import models, names, signing
from rae_protocol.errors import TABLE

PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"


@cache
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def table(name: str) -> list[list[str]]:
    """The rows of the table between `<!-- name -->` and `<!-- /name -->`, without its head."""
    match = re.search(f"<!-- {name} -->\n(.*?)<!-- /{name} -->", page(), re.DOTALL)
    assert match
    rows = [line.strip("|").split("|") for line in match[1].splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@cache
def vectors() -> dict[str, Any]:
    match = re.search(r"<!-- vectors -->\n```json\n(.*?)```", page(), re.DOTALL)
    assert match
    found: dict[str, Any] = json.loads(match[1])
    return found


def test_the_error_table_is_the_codes() -> None:
    rows = {rc.strip("`"): (int(status), text) for rc, status, text in table("errors")}
    assert rows == TABLE


def test_the_limits_are_the_codes() -> None:
    rows = {name.strip("`"): float(value) for name, value, _ in table("limits")}
    assert rows == {
        name: float(getattr(names, name)) for name in vars(names) if name.startswith("MAX_")
    }


def test_every_field_of_a_task_is_explained() -> None:
    part = page().split("### Submit:")[1].split("#### Inputs")[0]
    missing = [name for name in models.TaskSpec.model_fields if f"`{name}`" not in part]
    assert missing == []


def test_every_requirement_is_named() -> None:
    part = page().split("#### Requirements")[1].split("### Task states")[0]
    named = set(re.findall(r"`([a-z_]+)`", part))
    assert named == set(models.Requirements.model_fields)


def test_every_yield_reason_is_named() -> None:
    part = page().split("### Yield and goodbye")[1].split("### Obligations")[0]
    reasons = models.YieldRequest.model_json_schema()["properties"]["reason"]["enum"]
    assert [reason for reason in reasons if f"`{reason}`" not in part] == []


def test_the_examples_in_json_are_json() -> None:
    blocks = re.findall(r"```json\n(.*?)```", page(), re.DOTALL)
    assert len(blocks) >= 8
    for block in blocks:
        models.decode(block.encode())


def test_the_examples_are_the_models() -> None:
    expected: dict[type[models.Model], int] = {
        models.TaskSpec: 1,
        models.Submitted: 1,
        models.TaskView: 1,
        models.Registered: 1,
        models.LeasedTask: 1,
        models.Result: 2,
    }
    blocks = re.findall(r"```json\n(.*?)```", page(), re.DOTALL)
    counts = {model: sum(_is(model, block) for block in blocks) for model in expected}
    assert counts == expected


def _is(model: type[models.Model], block: str) -> bool:
    # The page shortens hashes to `…`.
    try:
        model.model_validate_json(re.sub('"sha256": "…"', f'"sha256": "{"0" * 64}"', block))
    except ValidationError:
        return False
    return True


def test_the_registration_vector_matches() -> None:
    v = vectors()["register"]
    digest = hashlib.sha256(v["body"].encode()).hexdigest()
    assert digest == v["body_sha256"]
    made = signing.sign(v["secret"].encode(), v["method"], v["target"], v["ts"], v["nonce"], digest)
    assert made == v["sig"]
    models.parse(models.RegisterRequest, json.loads(v["body"]))


def test_the_session_vector_matches() -> None:
    v = vectors()["session"]
    assert signing.session_key(v["secret"], v["node_token"]).hex() == v["key_hex"]


def test_the_vector_of_a_later_call_matches() -> None:
    v = vectors()["later_call"]
    digest = hashlib.sha256(v["body"].encode()).hexdigest()
    key = bytes.fromhex(v["key_hex"])
    made = signing.sign(key, v["method"], v["target"], v["ts"], v["nonce"], digest)
    assert made == v["sig"]
    assert v["key_hex"] == vectors()["session"]["key_hex"]


def test_the_vector_of_an_answer_matches() -> None:
    v = vectors()["answer"]
    digest = hashlib.sha256(v["body"].encode()).hexdigest()
    fields = signing.parse_answer(v["header"])
    key = bytes.fromhex(v["key_hex"])
    answered = signing.Answered(v["nonce"], v["content_type"], v["status"], digest)
    assert signing.answer_matches(fields, key, answered)
    made = signing.signed_answer(key, answered, float(fields.ts))
    assert made.header() == v["header"]
    assert v["nonce"] == vectors()["later_call"]["nonce"]


def test_the_envelope_vector_opens_and_is_a_task() -> None:
    v = vectors()["envelope"]
    assert base64.b64decode(v["sealed"]["payload"]).decode() == v["payload"]
    encoding = signing.pae(v["sealed"]["payloadType"], v["payload"].encode())
    assert hashlib.sha256(encoding).hexdigest() == v["pae_sha256"]
    opened = signing.open_envelope(v["sealed"], [v["public_key"]])
    models.parse(models.LeasedTask, opened)
