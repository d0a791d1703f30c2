#!/usr/bin/env bash
# Run the Docker image that build.sh made, with this folder mounted, as the user who calls; called by root, as the
# folder's owner, so that no file of root's comes into it.
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
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/docker.sh
source "$root/scripts/docker.sh"

device=cpu tag="" port=8888 dry_run=no
while [ $# -gt 0 ]; do
    case $1 in
    --gpu) device=gpu ;;
    --tag)
        tag=$(value_of "$@")
        check_image "$tag"
        shift
        ;;
    --port)
        port=$(value_of "$@")
        check_port "$port"
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
user=$(id -u):$(id -g)
if [ "${user%:*}" = 0 ]; then
    user=$(stat --format %u:%g -- "$root")
    [ "${user%:*}" = 0 ] && whose="root, who owns this folder: what it writes is root's" || whose="this folder's owner"
    note "called by root; the container runs as user $user, $whose"
fi
mount=$(bind_mount "$root" /workspace/demobert)
# A home that any user may write to, and the notebook on this machine only.
command+=(--user "$user" --env HOME=/tmp --publish "127.0.0.1:$port:8888" --mount "$mount"
    "${tag:-demobert:$device}" "$@")
run_docker "$dry_run" "${command[@]}"
