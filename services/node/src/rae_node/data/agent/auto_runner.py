#!/usr/bin/env python3
"""The agent (B4): polls while the guard allows. `--dry-run`: what the guard would do (B7)."""

import sys

from rae_handover import ROOT, hand_over

rest = [word for word in sys.argv[1:] if word != "--dry-run"]
verb = "dry-run" if "--dry-run" in sys.argv else "run"
hand_over("rae_node", verb, "--root", ROOT, *rest)
