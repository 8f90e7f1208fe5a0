"""The owner's files while the agent runs: a good `runtime.yaml` counts at once, a bad one never."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from rae_node.config.files import NodeConfig, RuntimeConfig, load_both
from rae_node.errors import ConfigError

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Live:
    """Holds what counts now. `look` is called about once a second."""

    def __init__(
        self, config_file: Path, runtime_file: Path, overrides: Mapping[str, object],
        config: NodeConfig, runtime: RuntimeConfig,
    ) -> None:  # fmt: skip
        self.runtime = runtime
        self.problem: str | None = None
        self._files, self._overrides, self._config = (config_file, runtime_file), overrides, config
        self._seen = self._stamps()

    def look(self) -> Literal["rejected", "changed", "waits"] | None:
        """Read again what has changed; returns what that means, if anything.

        `rejected`: the old files go on counting, `problem` says why. `changed`: new limits count.
        `waits`: config.yaml is good, and counts from the next start on.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return None
        self._seen = stamps
        try:
            config, runtime = load_both(*self._files, self._overrides)
        except ConfigError as error:
            self.problem = error.message
            return "rejected"
        waits = config != self._config
        self.problem = None
        if waits:
            self.problem = f"{self._files[0]} has changed; restart the agent to let it count"
        changed, self.runtime = runtime != self.runtime, runtime
        return "changed" if changed else "waits" if waits else None

    def _stamps(self) -> _Stamp:
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                info = file.stat()
                found.append((info.st_mtime_ns, info.st_size, info.st_ino))
            except OSError:
                found.append(None)
        return tuple(found)
