#!/usr/bin/env bash
# Run the tests in .venv, after installing what they need.
#
#     bash scripts/test.sh [PYTEST'S ARGUMENTS]        (for example: bash scripts/test.sh -k tokenization)
#
# Of some tests with many cases a part is run, others each time; --all runs all of them.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
case ${1-} in -h | --help) expect_no_arguments "$1" ;; esac
cd "$root"

prepare_environment requirements.txt requirements-dev.txt
# NVIDIA's Triton, in an environment above this one, which keeps its numpy.
prepare_serving_environment || echo "Triton's server could not be installed: its tests are skipped" >&2
# NVIDIA's bindings and TensorRT-RTX, which the TensorRT tests are held to; kept out of the environment itself.
bash tests/tensorrt_double/fetch_bindings.sh .venv/bin/python
echo "Running the tests"
# One process for each core; a file's tests, which share something costly, stay in one.
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
