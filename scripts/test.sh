#!/usr/bin/env bash
# Run the tests in .venv, after installing what they need. Arguments go to pytest: bash scripts/test.sh -k tokenization
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment requirements.txt requirements-dev.txt
echo "Running the tests"
exec .venv/bin/python -m pytest "$@"
