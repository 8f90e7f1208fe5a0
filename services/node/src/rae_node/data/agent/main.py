#!/usr/bin/env python3
"""The agent (A13), as auto_runner.py runs it."""

import sys

from rae_handover import ROOT, hand_over

hand_over("rae_node", "run", "--root", ROOT, *sys.argv[1:])
