"""`llm`: one answer of a local model; the only process that talks to Ollama is a killable child."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import requests
from pydantic import Field
from urllib3.exceptions import HTTPError

from rae_node.errors import TaskFailure, listed
from rae_node.runners import llm_child
from rae_node.runners.base import Params, Plan, child_plan, parse_params
from rae_node.workspace import Workspace
from rae_protocol.abort import within
from rae_protocol.models import LeasedTask
from rae_protocol.session import PlainSession

_MOST_BYTES = 1024 * 1024


class LlmParams(Params):
    """`role` (a word that the node maps to a model) or `model`; one of them."""

    prompt: Annotated[str, Field(min_length=1, max_length=1024 * 1024)]
    system: str | None = None
    role: str | None = None
    model: str | None = None
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    max_tokens: Annotated[int, Field(gt=0, le=1_000_000)] | None = None


class LlmRunner:
    """Asks the node's own Ollama."""

    kind = "llm"

    def __init__(
        self,
        url: str,
        roles: Callable[[], Mapping[str, str]],
        begins: Callable[[], None] = lambda: None,
    ) -> None:
        self._url, self._roles, self._begins = url, roles, begins

    def plan(self, task: LeasedTask, workspace: Workspace) -> Plan:
        """The child with its question. Raises TaskFailure E_INVALID; OSError."""
        params = parse_params(LlmParams, task)
        if (params.role is None) == (params.model is None):
            raise TaskFailure("E_INVALID", "llm: name either a role or a model")
        roles = self._roles()
        model = params.model or roles.get(params.role or "")
        if model is None:
            raise TaskFailure(
                "E_INVALID",
                f"llm: this node has no role '{str(params.role)[:100]}'; choose from "
                f"{listed(roles)}",
            )
        if model.endswith(("-cloud", ":cloud")):
            raise TaskFailure(
                "E_INVALID", f"llm: '{model[:100]}' is no local model; name one of the node's"
            )
        options: dict[str, bool | int | float | str] = dict(params.options)
        if params.max_tokens is not None:
            options["num_predict"] = params.max_tokens
        body = {"model": model, "prompt": params.prompt, "options": options, "stream": True}
        if params.system is not None:
            body["system"] = params.system
        call = {"url": self._url, "body": body}
        self._begins()
        plan = child_plan(llm_child.__file__, call, workspace, workspace.path)
        return replace(plan, may_hand_back=True, trusted=True)


def present_models(url: str, timeout_s: float) -> list[str] | None:
    """Models that Ollama has; None when it does not answer all of it in time.

    Any local user may listen where Ollama does not, and registering waits for this.
    """

    def ask() -> list[str]:
        options: dict[str, Any] = {"stream": True, "allow_redirects": False}
        with PlainSession() as session:
            with session.get(f"{url}/api/tags", timeout=timeout_s, **options) as answer:
                said = json.loads(answer.raw.read(_MOST_BYTES, decode_content=False))
            return [str(item["name"]) for item in said["models"]]

    try:
        return sorted(within(timeout_s, ask))[:256]
    except (requests.RequestException, HTTPError, OSError, ValueError, KeyError, TypeError,
            RecursionError, RuntimeError):  # fmt: skip
        return None


def has_model(present: list[str], wanted: str) -> bool:
    """Whether a model is there; without a tag it means `latest`."""
    return wanted in present or f"{wanted}:latest" in present
