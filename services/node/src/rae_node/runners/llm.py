"""`llm`: one answer of a local model; the only process that talks to Ollama is a killable child."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlsplit

import requests
from pydantic import Field
from urllib3.exceptions import HTTPError

from rae_node.errors import TaskFailure, listed
from rae_node.runners import llm_child
from rae_node.runners.base import Params, Plan, child_plan, parse_params
from rae_node.workspace.workspace import Workspace
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
        uids: Collection[int],
        roles: Callable[[], Mapping[str, str]],
        begins: Callable[[], None] = lambda: None,
    ) -> None:
        self._url, self._uids, self._roles, self._begins = url, sorted(uids), roles, begins

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
        call = {"url": self._url, "body": body, "uids": self._uids}
        self._begins()
        plan = child_plan(llm_child.__file__, call, workspace, workspace.path)
        return replace(plan, may_hand_back=True, trusted=True)


def runner_uids(user: str, own: int | None = None) -> frozenset[int]:
    """Whose program is taken for the model runner: this user's, root's, and the agent's own."""
    found = {0, os.getuid() if own is None else own}
    with contextlib.suppress(KeyError):
        found.add(pwd.getpwnam(user).pw_uid)
    return frozenset(found)


def port_problem(url: str, uids: Collection[int]) -> str:
    """Why what listens there is not the model runner; "": it is, or nothing listens."""
    port = urlsplit(url).port or 80
    try:
        return llm_child.stranger(port, llm_child.listeners(port), uids)
    except OSError as error:
        return f"who listens on port {port} cannot be read: {error}"


def present_models(url: str, timeout_s: float, uids: Collection[int]) -> list[str] | None:
    """Models that Ollama has; None when it does not answer all of it in time.

    Any local user may listen where Ollama does not, which is no answer of it, and registering
    waits for this.
    """

    def ask() -> list[str]:
        port = urlsplit(url).port or 80
        held = llm_child.listeners(port)
        if problem := llm_child.stranger(port, held, uids):
            raise OSError(problem)
        options: dict[str, Any] = {"stream": True, "allow_redirects": False}
        with PlainSession() as session:
            with session.get(f"{url}/api/tags", timeout=timeout_s, **options) as answer:
                said = json.loads(answer.raw.read(_MOST_BYTES, decode_content=False))
            if llm_child.listeners(port) != held:
                raise OSError("the port changed hands meanwhile")
            return [str(item["name"]) for item in said["models"]]

    try:
        return sorted(within(timeout_s, ask))[:256]
    except (requests.RequestException, HTTPError, OSError, ValueError, KeyError, TypeError,
            RecursionError, RuntimeError):  # fmt: skip
        return None


def has_model(present: list[str], wanted: str) -> bool:
    """Whether a model is there; without a tag it means `latest`."""
    return wanted in present or f"{wanted}:latest" in present
