#!/usr/bin/env python3
"""Is the GPU free (B3)? Exit code 0: SAFE TO RUN; 1: DO NOT RUN. Reasons as JSON."""

import sys

from rae_handover import ROOT, hand_over

hand_over("rae_node.checks", "gpu", "--root", ROOT, *sys.argv[1:])
