#!/usr/bin/env bash
# Run the Docker image that build.sh made, with this folder mounted, as the user who calls.
#
#     bash scripts/launch.sh [--gpu] [--tag NAME] [--port N] [--dry-run] [COMMAND...]
#
# --gpu       give it all NVIDIA GPUs (needs the NVIDIA Container Toolkit)
# --tag NAME  the image's name (default: demobert:cpu, or demobert:gpu)
# --port N    the port on this machine for the notebook's 8888 (default: 8888)
# --dry-run   print the docker command, and do nothing
# COMMAND     what to run in it (default: a shell), for example: jupyter notebook --ip 0.0.0.0 inference.ipynb
#
# What it writes (engines, predictions, downloads) stays in this folder when it ends.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

device=cpu tag="" port=8888 dry_run=no
while [ $# -gt 0 ]; do
    case $1 in
    --gpu) device=gpu ;;
    --tag)
        tag=$(value_of "$@")
        shift
        ;;
    --port)
        port=$(value_of "$@")
        [[ $port =~ ^[0-9]{1,5}$ ]] || usage_error "--port $port is not a number"
        shift
        ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
        print_help
        exit 0
        ;;
    -*) usage_error "unknown argument: $1" ;;
    *) break ;;
    esac
    shift
done

command=(docker run --rm --interactive)
[ -t 0 ] && command+=(--tty)
[ $device = cpu ] || command+=(--gpus all)
# A home that any user may write to, and the notebook on this machine only.
command+=(--user "$(id -u):$(id -g)" --env HOME=/tmp --publish "127.0.0.1:$port:8888"
    --mount "type=bind,source=$root,target=/workspace/demobert" "${tag:-demobert:$device}" "$@")
run_docker "$dry_run" "${command[@]}"
