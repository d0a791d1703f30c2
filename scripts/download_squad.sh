#!/usr/bin/env bash
# Download SQuAD's training and development sets into squad/.
#
#     bash scripts/download_squad.sh [v1_1] [v2_0]        (default: v1_1)
#
# v1_1    train-v1.1.json (30 MB), dev-v1.1.json (5 MB): every question has an answer
# v2_0    train-v2.0.json (42 MB), dev-v2.0.json (4 MB): some have none
#
# What is there is kept; a download that broke off goes on where it ended. Every file, also one that is there, is held to
# its SHA-256 in scripts/squad.sha256, wherever it comes from.
# DEMOBERT_SQUAD_URL names another place to download from.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/fetching.sh
source "$root/scripts/fetching.sh"

url=${DEMOBERT_SQUAD_URL:-https://rajpurkar.github.io/SQuAD-explorer/dataset}

versions=()
for argument in "$@"; do
    case $argument in
    v1_1) versions+=(v1.1) ;;
    v2_0) versions+=(v2.0) ;;
    -h | --help)
        print_help
        exit 0
        ;;
    *) usage_error "unknown version: $argument (known: v1_1, v2_0)" ;;
    esac
done
[ ${#versions[@]} -gt 0 ] || versions=(v1.1)

# is_squad FILE NAME: whether FILE has the SHA-256 of SQuAD's NAME.
is_squad() {
    local wanted found
    wanted=$(awk -v name="$2" '$2 == name { print $1 }' "$root/scripts/squad.sha256") || return
    found=$(sha256_of "$1") || return
    [ -n "$wanted" ] && [ "$found" = "$wanted" ]
}

download() {
    local name=$1 file=$root/squad/$1 part=$root/squad/.$1.part status=0
    if [ -e "$file" ]; then
        is_squad "$file" "$name" || fail "$file is there, but is not SQuAD's (its SHA-256 differs): move it away first"
        echo "squad/$name is there"
        return
    fi
    echo "Downloading $url/$name"
    fetch "$url/$name" "$part" || status=$?
    [ "$status" = 0 ] || explain_fetch "$status" "$url/$name" "$part"
    if ! is_squad "$part" "$name"; then
        rm -f "$part"
        fail "what $url/$name gave is not SQuAD's (its SHA-256 differs), and was thrown away: run this again"
    fi
    mv "$part" "$file"
    echo "squad/$name is complete"
}

mkdir -p "$root/squad"
for version in "${versions[@]}"; do
    download "train-$version.json"
    download "dev-$version.json"
done
