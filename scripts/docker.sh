# shellcheck shell=bash
# Sourced by build.sh and launch.sh, after common.sh: what they pass on to docker is checked here before.

_component='[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*'
_image="^([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?/)?$_component(/$_component)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?\$"
_version='(==|!=|~=|<=|>=|<|>)[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.\*)?'

# matches TEXT PATTERN: in the C locale, where [a-z] is no more than that.
matches() {
    local LC_ALL=C
    [[ $1 =~ $2 ]]
}

check_image() {
    matches "$1" "$_image" || usage_error "--tag $1 is not the name of an image, such as demobert:mine"
}

# Versions of pip, and nothing else of what a requirement may hold.
check_versions() {
    matches "$2" "^$_version(,$_version)*\$" || usage_error "$1 $2 is not a version, such as ==8.6.1 or >=10,<11"
}

check_port() {
    matches "$1" '^[1-9][0-9]{0,4}$' && [ "$1" -le 65535 ] || usage_error "--port $1 is not a number from 1 to 65535"
}

# bind_mount SOURCE TARGET: docker's --mount is a line of CSV, where a comma begins the next option.
bind_mount() {
    local source="source=$1"
    case $source in
    *[[:cntrl:]]*) fail "docker can't mount a folder whose path has control characters; move it: $1" ;;
    *[,\"]*) source="\"${source//\"/\"\"}\"" ;;
    esac
    printf '%s\n' "type=bind,$source,target=$2"
}

# run_docker DRY_RUN COMMAND…: prints the command, quoted for a shell, and, unless DRY_RUN is yes, becomes it.
run_docker() {
    local dry_run=$1
    shift
    printf '%s\n' "${*@Q}"
    [ "$dry_run" = yes ] && return
    command -v docker >/dev/null || fail "docker is not installed"
    exec "$@"
}
