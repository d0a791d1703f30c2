#!/usr/bin/env bash
# Run the tests in .venv, after installing what they need. Arguments go to pytest: bash scripts/test.sh -k tokenization
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment requirements.txt requirements-dev.txt
# NVIDIA's bindings and TensorRT-RTX, which the TensorRT tests are held to; kept out of the environment itself.
bash tests/tensorrt_double/fetch_bindings.sh .venv/bin/python
echo "Running the tests"
exec .venv/bin/python -m pytest "$@"
