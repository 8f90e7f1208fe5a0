"""Finds the installed agent for the scripts beside it, and hands over. Any Python 3 can read it."""

import os
import sys
from importlib.util import find_spec

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def hand_over(module: str, *argv: str) -> None:
    """Become a module of the agent: in `current` of this tree, else in the running Python."""
    python = os.path.join(ROOT, "current", "bin", "python")
    try:
        if os.access(python, os.X_OK):
            os.execv(python, [python, "-I", "-m", module, *argv])
        if sys.version_info >= (3, 10) and find_spec("rae_node"):
            os.execv(sys.executable, [sys.executable, "-I", "-m", module, *argv])
        problem = f"{python} is missing, and {sys.executable} has no rae_node for Python 3.10"
    except OSError as error:
        problem = f"{python} cannot be run ({error})"
    sys.exit(f"{sys.argv[0]}: {problem}; install the agent below {os.path.join(ROOT, 'current')}")
