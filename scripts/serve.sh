#!/usr/bin/env bash
# Serve an engine on this machine by NVIDIA's Triton, over HTTP and gRPC, and, with --page, on a page: -h explains the
# arguments. The server and what it needs are installed into .venv-serve the first time (370 MB).
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
serve=$root/scripts/serving/serve.py
for argument in "$@"; do
    case $argument in -h | --help) exec "$(find_python)" "$serve" -h ;; esac
done
python=$(find_python)
needed=$("$python" "$serve" --check "$@") # mistakes are said before anything is installed
if [ "$needed" = server ]; then
    folder=$PWD
    cd "$root"
    prepare_serving_environment >&2
    cd -- "$folder"
    python=$root/.venv-serve/bin/python
fi
exec "$python" "$serve" "$@"
