"""Types that tests of meshes share."""

from __future__ import annotations

from collections.abc import Callable

from tools.devmesh import DevMesh

MakeMesh = Callable[..., DevMesh]
