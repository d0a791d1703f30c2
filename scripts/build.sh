#!/usr/bin/env bash
# Build the Docker image: everything installed, for the CPU, or for NVIDIA GPUs.
#
#     bash scripts/build.sh [--gpu] [--tensorrt VERSION] [--tag NAME] [--dry-run]
#
# --gpu               CUDA, TensorRT and PyCUDA too
# --tensorrt VERSION  with --gpu: which TensorRT, as pip spells it, such as "==8.6.1" or ">=11" (default: "<11")
# --tag NAME          the image's name (default: demobert:cpu, or demobert:gpu)
# --dry-run           print the docker command, and do nothing
#
# scripts/launch.sh runs the image.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/docker.sh
source "$root/scripts/docker.sh"

device=cpu tag="" tensorrt="" dry_run=no
while [ $# -gt 0 ]; do
    case $1 in
    --gpu) device=gpu ;;
    --tensorrt)
        tensorrt=$(value_of "$@")
        check_versions --tensorrt "$tensorrt"
        shift
        ;;
    --tag)
        tag=$(value_of "$@")
        check_image "$tag"
        shift
        ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
        print_help
        exit 0
        ;;
    *) usage_error "unknown argument: $1" ;;
    esac
    shift
done
[ -z "$tensorrt" ] || [ $device = gpu ] || usage_error "--tensorrt needs --gpu"

command=(docker build --build-arg "DEVICE=$device")
[ -z "$tensorrt" ] || command+=(--build-arg "TENSORRT=$tensorrt")
command+=(--tag "${tag:-demobert:$device}" "$root")
run_docker "$dry_run" "${command[@]}"
