"""What a submitter says about a task, and what control answers (`docs/protocol.md`, part 2)."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    model_validator,
)

from rae_protocol.names import (
    MAX_TASKS_PER_CALL,
    NodeId,
    Phrase,
    RelativePath,
    Sha256,
    ShortText,
    TaskId,
    TaskState,
    Word,
)
from rae_protocol.weburl import host_of


class Model(BaseModel):
    """A body on the wire: unknown fields and wrong types are refused, never guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


_RFC3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")


def _rfc3339(value: object) -> object:
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC3339.match(value)):
        return value
    raise ValueError("a time is RFC 3339 with an offset, such as 2026-01-31T12:00:00Z")


def _thinkable(value: datetime) -> datetime:
    # Python and SQLite must both be able to turn it into any other time zone.
    if not 1970 < value.year < 2200:
        raise ValueError("a time lies between the years 1971 and 2199")
    return value


Moment = Annotated[
    AwareDatetime, Field(strict=False), BeforeValidator(_rfc3339), AfterValidator(_thinkable)
]
Seconds = Annotated[float, Field(ge=0.001, le=30 * 86400)]
Mib = Annotated[int, Field(ge=0, le=16 * 1024 * 1024)]
Gib = Annotated[float, Field(ge=0, le=16 * 1024)]


SENT = "sent"  # a validation's context: the value comes from a caller, not from the ledger


def _plain_url(value: str, info: ValidationInfo) -> str:
    # The ledger's tasks were let in by the rules of their day and must stay readable. The node
    # looks at each URL again.
    if info.context == SENT:
        host_of(value)
    return value


class InlineInput(Model):
    """The content itself, as text (UTF-8) or, for bytes, base64."""

    inline: Annotated[str, StringConstraints(max_length=4 * 1024 * 1024)]
    encoding: Literal["utf-8", "base64"] = "utf-8"


class BlobInput(Model):
    """A blob that the same submitter uploaded before."""

    sha256: Sha256


class UrlInput(Model):
    """Fetched by the node, from hosts that its owner's configuration allows."""

    url: Annotated[
        str,
        StringConstraints(pattern=r"^https?://[^\s]+$", max_length=2000),
        AfterValidator(_plain_url),
    ]
    sha256: Sha256 | None = None


class TaskInput(Model):
    """An artifact of another task, which becomes a dependency by that."""

    from_task: TaskId
    artifact: RelativePath


# The field that says which kind of source it is; a URL may have a sha256 beside it.
_SOURCES = ("inline", "url", "from_task", "sha256")


def _source(value: object) -> str | None:
    fields = vars(value) if isinstance(value, Model) else value
    if not isinstance(fields, dict):
        return None
    return next((name for name in _SOURCES if name in fields), None)


# One kind is tried, not all: each wrong input would count several mistakes.
InputSource = Annotated[
    Annotated[InlineInput, Tag("inline")]
    | Annotated[UrlInput, Tag("url")]
    | Annotated[TaskInput, Tag("from_task")]
    | Annotated[BlobInput, Tag("sha256")],
    Discriminator(
        _source,
        custom_error_type="no_source",
        custom_error_message=f"must be an object with one of {', '.join(_SOURCES)}",
    ),
]


class ArtifactSpec(Model):
    """A file that the task leaves in `output/` (else `work/`) and the submitter wants back."""

    name: RelativePath
    type: Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]{0,127}$")] = (
        "application/octet-stream"
    )
    max_mb: Annotated[float, Field(gt=0, le=64)] = 16


class Requirements(Model):
    """What a node must have. Sizes are minima; strings are equal or a version's first parts."""

    gpu: bool | None = None
    gpu_count: Annotated[int, Field(ge=0, le=64)] | None = None
    gpu_model: Phrase | None = None
    vram_mb: Mib | None = None
    vram_gb: Gib | None = None
    ram_gb: Gib | None = None
    min_ram_gb: Gib | None = None
    cpu: Phrase | None = None
    cpu_threads: Annotated[int, Field(ge=0, le=4096)] | None = None
    disk_gb: Gib | None = None
    os: Word | None = None
    os_in: Annotated[list[Word], Field(max_length=16)] | None = None
    arch_in: Annotated[list[Word], Field(max_length=16)] | None = None
    tags: Annotated[list[Word], Field(max_length=32)] | None = None
    llm: Annotated[list[Word], Field(max_length=16)] | None = None
    models: Annotated[list[Word], Field(max_length=16)] | None = None
    runners: Annotated[list[Word], Field(max_length=16)] | None = None
    trusted: bool | None = None
    nodes: Annotated[list[NodeId], Field(max_length=64)] | None = None
    min_versions: Annotated[dict[Word, Word], Field(max_length=16)] | None = None
    ui_session: bool | None = None
    python_version: Word | None = None
    ffmpeg_version: Word | None = None
    davinci_available: bool | None = None


class TaskSpec(Model):
    """The body of a task, as submitted."""

    task_id: TaskId | None = None
    kind: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
    params: dict[str, Any] = Field(default_factory=dict)
    inputs: Annotated[dict[RelativePath, InputSource], Field(max_length=256)] = Field(
        default_factory=dict
    )
    requirements: Requirements = Field(default_factory=Requirements)
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    timeout_s: Seconds = 3600.0
    lease_ttl_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    not_before: Moment | None = None
    expires_at: Moment | None = None
    depends_on: Annotated[list[TaskId], Field(max_length=256)] = Field(default_factory=list)
    artifacts: Annotated[list[ArtifactSpec], Field(max_length=256)] = Field(default_factory=list)
    labels: Annotated[dict[Word, ShortText], Field(max_length=32)] = Field(default_factory=dict)
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    step_name: Word | None = None
    inputs_hash: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TaskSpec:
        names = [artifact.name for artifact in self.artifacts]
        if len(set(names)) != len(names):
            raise ValueError("artifacts: two of them have the same name")
        if self.inputs_hash is not None and self.step_name is None:
            raise ValueError("inputs_hash: needs a step_name beside it")
        files = {*names, *self.inputs}
        for name in files:
            end = name.find("/")
            while end >= 0:
                if name[:end] in files:
                    raise ValueError(f"'{name[:end]}' cannot be a file and a folder at once")
                end = name.find("/", end + 1)
        return self


class SubmitMany(Model):
    """Several tasks, taken all or none."""

    # Only the first wrong task's mistakes are listed.
    tasks: Annotated[list[TaskSpec], FailFast(), Field(min_length=1, max_length=MAX_TASKS_PER_CALL)]


class TaskRef(Model):
    """How a submit answers for a task; `created` is false for one that was there before."""

    task_id: str
    state: TaskState
    created: bool = True


class Submitted(Model):
    """The answer to a submit, in the order of the request."""

    tasks: list[TaskRef]


class TaskError(Model):
    """Why an attempt ended without success. Codes: E_DENY, E_OOM, E_TIMEOUT, … (protocol.md)."""

    code: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
    message: Annotated[str, StringConstraints(max_length=4000)] = ""


class ArtifactView(Model):
    """An artifact that control holds."""

    name: str
    size: int
    sha256: str
    type: str = "application/octet-stream"


class AttemptView(Model):
    """One attempt of a task on one node."""

    attempt: int
    node_id: str
    slot: str
    state: str
    reason: str | None = None
    claimed_at: datetime
    acked_at: datetime | None = None
    ended_at: datetime | None = None


class TaskView(Model):
    """A task as control tells it (detail; the list leaves the heavy fields out).

    `dropped`: its spec and result went, to make room for those of newer tasks.
    """

    task_id: str
    state: TaskState
    kind: str
    submitter: str
    priority: int
    attempts: int
    failures: int
    interruptions: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None = None
    not_before: datetime | None = None
    node_id: str | None = None
    slot: str | None = None
    reason: str | None = None
    progress: float | None = None
    note: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    dropped: bool = False
    result: Any = None
    error: TaskError | None = None
    artifacts: list[ArtifactView] = Field(default_factory=list)
    history: list[AttemptView] = Field(default_factory=list)
    why: list[str] = Field(default_factory=list)
    spec: TaskSpec | None = None


class TaskList(Model):
    """One page; `next` is the cursor of the following one, None on the last."""

    tasks: list[TaskView]
    next: str | None = None


class EventView(Model):
    """One transition, or one refused call, in the order in which the ledger took it."""

    seq: int
    at: datetime
    task_id: str | None = None
    attempt: int | None = None
    from_state: str | None = None
    to_state: str | None = None
    node_id: str | None = None
    slot: str | None = None
    reason: str
    detail: Any = None


class EventList(Model):
    """Events after a cursor; ask again with `next` and `incarnation`.

    `lost`: events after the cursor were removed after their retention time. Control's
    `incarnation` changes when it is restored: cursors from before are `unknown_cursor` then.
    """

    events: list[EventView]
    next: int
    lost: bool = False
    incarnation: str | None = None


class CancelRequest(Model):
    """Why a task is cancelled or queued again; shown in its history."""

    reason: ShortText | None = None


class TaskResult(Model):
    """What a task returned, or why not; nulls stand there."""

    task_id: str
    state: TaskState
    result: Any
    error: TaskError | None


class BlobStored(Model):
    """The blob is on the disk."""

    sha256: Sha256
    size: int


class Health(Model):
    """The process answers."""

    status: Literal["ok"]


class Held(Model):
    """After a restore no task is leased until then, or until so many `nodes` have reported."""

    until: datetime
    nodes: int | None = None


class Ready(Health):
    """The ledger takes commits. While `queue` is unavailable, only `rq info` lags behind."""

    ledger: Literal["ok"]
    queue: Literal["ok", "unavailable"]
    incarnation: str
    nodes_online: int
    open_polls: int
    held: Held | None = None


class ErrorBody(Model):
    """Every answer of 400 and more: decide by `rc`, show `message`."""

    rc: str
    message: str
    detail: dict[str, Any]
