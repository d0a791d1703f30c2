#!/usr/bin/env python3
"""Questions per second of many engines that Ray Data feeds, beside one's. The code is in scripts/benchmarks/scaling.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from scripts.benchmarks.scaling import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    cli.run(main)
