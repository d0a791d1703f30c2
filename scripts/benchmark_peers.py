#!/usr/bin/env python3
"""Time this project's CPU engine beside its peers. The code is in scripts/benchmarks/peers.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from scripts.benchmarks.peers import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    cli.run(main)
