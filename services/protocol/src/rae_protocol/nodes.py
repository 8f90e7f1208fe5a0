"""What nodes and control say to each other (`docs/protocol.md`, part 3)."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from rae_protocol.names import (
    MAX_LOG_CHUNK,
    NodeId,
    RelativePath,
    Sha256,
    ShortText,
    Slot,
    TaskId,
    TokenName,
)
from rae_protocol.tasks import ArtifactSpec, Model, TaskError

Number = Annotated[float, Field(ge=0, le=1e12)]
Text = Annotated[str, StringConstraints(max_length=200)]
Wanted = Literal["work", "drain"]
LeaseId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
Attempt = Annotated[int, Field(ge=1, le=1_000_000)]


class Availability(str, Enum):
    """Whether a node would work now: open, or why not."""

    OPEN = "open"
    OWNER = "owner"
    PAUSED = "paused"
    BLIND = "blind"


# Not strict: a word from JSON is not yet a member, and bodies are parsed from decoded JSON.
AvailabilityWord = Annotated[Availability, Field(strict=False)]


class CudaInfo(Model):
    """Versions, None where unknown."""

    version: Text | None = None
    driver: Text | None = None


class GpuInfo(Model):
    """One GPU as C2 describes it; `uuid` is ours."""

    vendor: Text = "nvidia"
    name: Text
    vram_mb: Number | None = None
    cuda: CudaInfo | None = None
    uuid: Text | None = None


class CpuInfo(Model):
    """Logical cores and architecture (C2); the model's name is D4's `cpu`."""

    cores: Annotated[int, Field(ge=1, le=65536)]
    arch: Text
    model: Text | None = None


class Capabilities(Model):
    """A10's keys, C2's payload or D4's keys: a node sends what it knows, None means unknown."""

    node_id: NodeId | None = None
    version: Text | None = None
    gpu: bool | Annotated[list[GpuInfo], Field(max_length=64)] | None = None
    gpu_model: Text | None = None
    vram_gb: Number | None = None
    ram_gb: Number | None = None
    memory_mb: Number | None = None
    disk_free_mb: Number | None = None
    cpu: CpuInfo | Text | None = None
    cpu_threads: Annotated[int, Field(ge=1, le=65536)] | None = None
    arch: Text | None = None
    os: Text | None = None
    python_version: Text | None = None
    ffmpeg_version: Text | None = None
    davinci_available: bool | None = None
    ui_session: bool | None = None
    llm: Annotated[list[Text], Field(max_length=64)] | None = None
    models: Annotated[list[Text], Field(max_length=256)] | None = None
    runners: Annotated[list[Text], Field(max_length=64)] | None = None
    commands: Annotated[list[Text], Field(max_length=1024)] | None = None
    python_tasks: Annotated[list[Text], Field(max_length=1024)] | None = None
    tags: Annotated[list[Text], Field(max_length=64)] | None = None
    versions: Annotated[dict[Text, Text], Field(max_length=64)] | None = None


class LeaseRef(Model):
    """Names one lease; every call about a task carries it."""

    task_id: TaskId
    attempt: Attempt
    lease_id: LeaseId


class RegisterRequest(Model):
    """A node introduces itself. The least is `node_id` and `capabilities`."""

    node_id: NodeId
    capabilities: Capabilities = Field(default_factory=Capabilities)
    ack: bool = False
    instance: Text | None = None
    machine: Text | None = None
    version: Text | None = None
    trusted: bool | None = None
    slots: Annotated[list[Slot], Field(min_length=1, max_length=256)] | None = None
    isolation: Literal["unit", "bubblewrap", "process"] | None = None
    availability: AvailabilityWord = Availability.OPEN
    unfinished: Annotated[list[LeaseRef], Field(max_length=1000)] = Field(default_factory=list)

    @field_validator("slots")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a slot is named twice")
        return value


Period = Annotated[float, Field(gt=0)]


class Periods(Model):
    """Control's periods, in seconds; they may change whenever it starts. None: an older control."""

    heartbeat_interval_sec: Period | None = None
    heartbeat_timeout_sec: Period | None = None
    lease_margin_s: Period | None = None
    ack_timeout_s: Period | None = None


class Registered(Model):
    """What a node must know to go on. Periods in seconds."""

    node_token: str
    expires_in_s: float
    heartbeat_interval_sec: float
    heartbeat_timeout_sec: float
    lease_margin_s: float
    ack_timeout_s: float
    incarnation: str
    wanted: Wanted | None = None
    commands: list[Command] = Field(default_factory=list)


class Heartbeat(Model):
    """Alive. `leases` renews those listed; without it all of the node's are renewed.

    `incarnation` is control's as the node knows it, once nothing of an older one runs there.
    """

    node_id: NodeId
    incarnation: Text | None = None
    leases: Annotated[list[LeaseRef], Field(max_length=1000)] | None = None
    availability: AvailabilityWord | None = None
    reasons: Annotated[list[Text], Field(max_length=32)] | None = None
    clock_offset_s: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
    disk_free_mb: Number | None = None
    vram_free_mb: Number | None = None


class Command(Model):
    """An order: `cancel` names a lease whose work must stop, the rest are for the node."""

    command: Literal["cancel", "drain", "resume"]
    task_id: str | None = None
    lease_id: str | None = None
    reason: str | None = None


class HeartbeatAnswer(Periods):
    """The listed leases that are not open any more come back as `cancel` commands.

    `wanted` is what the operator wants of the node now; a control that is older sends none.
    """

    wanted: Wanted | None = None
    commands: list[Command] = Field(default_factory=list)
    incarnation: str


class Reason(Model):
    """Why a poll got nothing: a stable code and a sentence."""

    code: str
    message: str


class LeasedInput(Model):
    """Where an input comes from: inline, a URL, or (neither) control, with the lease."""

    inline: str | None = None
    encoding: Literal["utf-8", "base64"] | None = None
    url: str | None = None
    sha256: Sha256 | None = None
    size: int | None = None


class LeasedTask(Model):
    """A task as it reaches a node: plain for `bearer` nodes, in an envelope for `hmac` ones."""

    task_id: TaskId
    attempt: Attempt
    lease_id: LeaseId
    slot: Slot
    kind: str
    params: dict[str, Any]
    inputs: dict[RelativePath, LeasedInput] = Field(default_factory=dict)
    artifacts: list[ArtifactSpec] = Field(default_factory=list)
    timeout_s: float
    lease_ttl_s: float
    labels: dict[str, str] = Field(default_factory=dict)
    node_id: NodeId
    incarnation: str
    issued_at: float
    expires_at: float


class PollAnswer(Periods):
    """`task` is a LeasedTask, an envelope around one, or None with the reasons."""

    task: dict[str, Any] | None = None
    wanted: Wanted | None = None
    reasons: list[Reason] = Field(default_factory=list)
    commands: list[Command] = Field(default_factory=list)


class Ack(LeaseRef):
    """The node has the task and will start it now."""


class Progress(LeaseRef):
    """How far a task is, in percent, with a line for people."""

    pct: Annotated[float, Field(ge=0, le=100)]
    note: ShortText | None = None


class LogChunk(LeaseRef):
    """Bytes of the attempt's log from an offset on; the same chunk twice is harmless."""

    offset: Annotated[int, Field(ge=0, le=1 << 40)]
    data: Annotated[str, StringConstraints(max_length=MAX_LOG_CHUNK * 4 // 3 + 4)]


class ArtifactMeta(Model):
    """What a node says of a part that it sends along."""

    name: RelativePath
    sha256: Sha256 | None = None
    size: Annotated[int, Field(ge=0)] | None = None
    type: Annotated[str, StringConstraints(max_length=127)] = "application/octet-stream"


class Result(Model):
    """How an attempt ended. `bearer` clients may leave attempt and lease out."""

    task_id: TaskId
    attempt: Attempt | None = None
    lease_id: LeaseId | None = None
    status: Literal["succeeded", "failed"]
    result: Any = None
    error: TaskError | None = None
    artifacts: Annotated[list[ArtifactMeta], Field(max_length=256)] = Field(default_factory=list)
    duration_s: Number | None = None


class ResultAnswer(Model):
    """Where the task stands now."""

    task_id: str
    state: str


class YieldRequest(LeaseRef):
    """The work was stopped and is handed back. `infrastructure` counts against the node."""

    reason: Literal[
        "owner", "guard", "paused", "shutdown", "drain", "cancelled", "deadline", "infrastructure",
        "no_gpu",
    ]  # fmt: skip
    detail: ShortText | None = None
    stopped_ms: Number | None = None


class Goodbye(Model):
    """The node leaves on purpose; all its work is dead."""

    node_id: NodeId
    reason: ShortText | None = None


class EnrolRequest(Model):
    """An operator admits a node. The same call again gives the same secret."""

    node_id: NodeId
    kind: Literal["hmac", "bearer"] = "hmac"
    trusted: bool = False


class Enrolled(Model):
    """Everything a node needs; the secret is only good for registering."""

    node_id: str
    kind: Literal["hmac", "bearer"]
    trusted: bool
    enrolment_secret: str
    control_public_keys: list[str]


class NodeView(Model):
    """A node as control tells it.

    `offered`: the slots that its open poll names and that hold no lease. `suspect`: tasks fail
    there that succeed elsewhere.
    """

    node_id: str
    state: Literal["online", "offline", "draining", "cordoned", "revoked", "enrolled"]
    availability: Availability | None = None
    kind: Literal["hmac", "bearer"]
    trusted: bool
    slots: list[str] = Field(default_factory=list)
    offered: list[str] = Field(default_factory=list)
    running: list[str] = Field(default_factory=list)
    reason: str | None = None
    suspect: str | None = None
    reasons: list[str] = Field(default_factory=list)
    last_seen: datetime | None = None
    version: str | None = None
    isolation: str | None = None
    clock_offset_s: float | None = None
    capabilities: Capabilities = Field(default_factory=Capabilities)


class NodeList(Model):
    """Online nodes, or with `all=1` every one that was ever enrolled."""

    nodes: list[NodeView]


class OperatorNote(Model):
    """Why an operator drains, resumes or revokes."""

    reason: ShortText | None = None


class TokenRequest(Model):
    """A new token for RAE or an operator. `name` is the submitter in the ledger."""

    name: TokenName
    role: Literal["submit", "read", "admin"]


class TokenView(Model):
    """A token without its text; `token` is shown once, in the answer that made it."""

    token_id: str
    name: str
    role: Literal["submit", "read", "admin"]
    created_at: datetime
    revoked_at: datetime | None = None
    token: str | None = None


class TokenList(Model):
    """All tokens, revoked ones too."""

    tokens: list[TokenView]


Registered.model_rebuild()
