#!/usr/bin/env bash
# The TensorRT engines on this machine's NVIDIA GPU: their numbers and their times, beside PyTorch's. Needs a Python
# with PyTorch (PYTHON=python3.12 names another), and no package registry: `gpu_check.sh --prepare`, where there is
# one, collects what the GPU machine lacks. -h explains the flags.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
exec "${PYTHON:-python3}" "$root/scripts/gpu_checking/check.py" "$@"
