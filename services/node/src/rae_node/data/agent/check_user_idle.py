#!/usr/bin/env python3
"""Is the owner away (B2)? Exit code 0: SAFE TO RUN; 1: DO NOT RUN. Reasons as JSON."""

import sys

from rae_handover import ROOT, hand_over

hand_over("rae_node.checks", "user", "--root", ROOT, *sys.argv[1:])
