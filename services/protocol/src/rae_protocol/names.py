"""Names and limits that both sides must agree on: ids, paths inside a workspace, sizes."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

from pydantic import AfterValidator, StringConstraints, WithJsonSchema

TASK_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
NODE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
TOKEN_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"  # noqa: S105 - no secret
SLOT_PATTERN = r"^(cpu|gpu)[0-9]{1,3}$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
RESERVED_TASK_IDS = frozenset({"poll", "ack", "progress", "log", "result", "yield"})
RESERVED_NODE_IDS = frozenset({"register", "heartbeat", "goodbye", "enrol"})

MAX_JSON_BYTES = 8 * 1024 * 1024
MAX_REGISTER_BYTES = 256 * 1024
MAX_NODE_BYTES = 512 * 1024
MAX_NESTING = 32
MAX_VALUES = 250_000
MAX_TASKS_PER_CALL = 1000
MAX_NEEDS_PER_CALL = 20_000
MAX_DECLARED = 8 * 1024 * 1024
MAX_BLOB_BYTES = 16 * 1024 * 1024
MAX_RESULT_BYTES = 64 * 1024 * 1024
MAX_HISTORY = 500
MAX_LOG_BYTES = 10 * 1024 * 1024
MAX_LOG_CHUNK = 256 * 1024
MAX_WAIT_S = 60.0

# The quotation mark is out because multipart field names cannot carry it unambiguously.
_FORBIDDEN_CHARACTERS = re.compile(r'[\x00-\x1f\x7f\\"]')


class TaskState(str, Enum):
    """Where a task is; the last four are final."""

    WAITING = "waiting"
    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing happens to the task any more unless somebody asks for it."""
        return self in _FINAL


_FINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED})


def relative_path(value: str) -> str:
    """A path that stays in its folder: at most 255 bytes, no `..`, no control character.

    Raises ValueError with what is wrong with it.
    """
    if not value or len(value.encode("utf-8", "replace")) > 255:
        raise ValueError("a name has 1 to 255 bytes")
    if _FORBIDDEN_CHARACTERS.search(value):
        raise ValueError("a name has no control characters, no backslash and no quotation mark")
    if any(part in {"", ".", ".."} for part in value.split("/")):
        raise ValueError("a name is a relative path without '.', '..' or empty parts")
    return value


def _task_id(value: str) -> str:
    if value in RESERVED_TASK_IDS:
        raise ValueError(f"'{value}' is a reserved word and cannot be a task_id")
    return value


def _node_id(value: str) -> str:
    if value in RESERVED_NODE_IDS:
        raise ValueError(f"'{value}' is a reserved word and cannot be a node_id")
    return value


TaskId = Annotated[str, StringConstraints(pattern=TASK_ID_PATTERN), AfterValidator(_task_id)]
NodeId = Annotated[str, StringConstraints(pattern=NODE_ID_PATTERN), AfterValidator(_node_id)]
TokenName = Annotated[str, StringConstraints(pattern=TOKEN_NAME_PATTERN)]
Slot = Annotated[str, StringConstraints(pattern=SLOT_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=SHA256_PATTERN)]
# The schema says a little less than `relative_path` does: it cannot count bytes.
_PATH_PATTERN = r'^(?!\.{1,2}(/|$))[^\x00-\x1f\x7f\\"/]+(/(?!\.{1,2}(/|$))[^\x00-\x1f\x7f\\"/]+)*$'
RelativePath = Annotated[
    str,
    AfterValidator(relative_path),
    WithJsonSchema({"type": "string", "maxLength": 255, "pattern": _PATH_PATTERN}),
]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/+-]{0,127}$")]
Phrase = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][^\x00-\x1f\x7f]{0,127}$")]
ShortText = Annotated[str, StringConstraints(max_length=500)]
