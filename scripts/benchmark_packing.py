#!/usr/bin/env python3
"""What packing gains: questions and tokens per second, three ways. The code is in scripts/benchmarks/packing.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from scripts.benchmarks.packing import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    cli.run(main)
