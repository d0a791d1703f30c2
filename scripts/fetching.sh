# shellcheck shell=bash
# Sourced by the download scripts, after common.sh.

# fetch URL PART: PART holds all of URL's content if this returns 0. What arrived of it stays in PART when the
# connection breaks, and the next call goes on from there.
fetch() {
    local url=$1 part=$2 attempt status progress=(--silent --show-error)
    command -v curl >/dev/null || fail "curl is not installed: apt-get install curl"
    [ -t 2 ] && progress=(--progress-bar)
    for attempt in 1 2 3; do
        [ "$attempt" = 1 ] || sleep 1
        status=0
        # A minute with less than a byte a second counts as a broken connection.
        curl --fail --location "${progress[@]}" --connect-timeout 30 --speed-limit 1 --speed-time 60 \
            --continue-at - --output "$part" "$url" || status=$?
        case $status in
        0) return 0 ;;
        22) return 22 ;;        # the server said no: asking again would not help
        33) rm -f "$part" ;;    # it can't go on from the middle: from the start, then
        esac
    done
    return "$status"
}

# explain_fetch STATUS URL PART: ends the script with what the user can do about a fetch that failed.
explain_fetch() {
    case $1 in
    22) rm -f "$3"; fail "$2 is not there, or may not be downloaded" ;;
    6 | 7) fail "$2 can't be reached (curl's exit code $1): check the network or the proxy, then run this again" ;;
    23) fail "$3 can't be written: is the disk full?" ;;
    *) fail "the download of $2 broke off (curl's exit code $1): run this again, it goes on where it ended" ;;
    esac
}
