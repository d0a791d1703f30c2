# shellcheck shell=bash
# Sourced by the download scripts, after common.sh.

# fetch URL PART: PART holds all of URL's content if this returns 0. What arrived of it stays in PART when the
# connection breaks or the server fails, and the next call goes on from there. Returns curl's exit code, with the
# server's answer in http_status.
fetch() {
    local url=$1 part=$2 attempt status lock progress=(--silent --show-error)
    command -v curl >/dev/null || fail "curl is not installed: apt-get install curl"
    # Two downloads would write into each other's part. The lock ends with this script.
    exec {lock}>>"$part" || fail "$part can't be written"
    ! command -v flock >/dev/null || flock --nonblock "$lock" || fail "another download of $url is running: wait for it"
    [ -t 2 ] && progress=(--progress-bar)
    for attempt in 1 2 3; do
        [ "$attempt" = 1 ] || sleep 1
        status=0
        # A minute with less than a byte a second counts as a broken connection.
        http_status=$(curl --fail --location "${progress[@]}" --connect-timeout 30 --speed-limit 1 --speed-time 60 \
            --continue-at - --write-out '%{http_code}' --globoff --output "$part" --url "$url") || status=$?
        case $status in
        0) return 0 ;;
        22) ! is_refusal || break ;; # asking again would not help
        33) rm -f "$part" ;;           # the server can't go on from the middle: from the start, then
        esac
    done
    [ -s "$part" ] || rm -f "$part"
    return "$status"
}

# Whether the server said that it has no such thing, or not for us; and not that it is busy or out of order.
is_refusal() {
    [[ $http_status == 4?? && $http_status != 408 && $http_status != 429 ]]
}

# sha256_of FILE: prints its SHA-256, and nothing where the file can't be read.
sha256_of() {
    local sum
    sum=$(sha256sum 2>/dev/null <"$1") || return
    echo "${sum%% *}"
}

# explain_fetch STATUS URL PART: ends the script with what the user can do about a fetch that failed.
explain_fetch() {
    case $1 in
    22)
        is_refusal && fail "$2 is not there, or may not be downloaded (HTTP status $http_status)"
        fail "the server of $2 can't answer now (HTTP status $http_status): run this again later"
        ;;
    6 | 7) fail "$2 can't be reached (curl's exit code $1): check the network or the proxy, then run this again" ;;
    23) fail "$3 can't be written: is the disk full?" ;;
    *) fail "the download of $2 broke off (curl's exit code $1): run this again, it goes on where it ended" ;;
    esac
}
