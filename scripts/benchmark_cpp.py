#!/usr/bin/env python3
"""Time build/perf and perf.py on one engine, in turn. The code is in scripts/benchmarks/cpp.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from scripts.benchmarks.cpp import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    cli.run(main)
