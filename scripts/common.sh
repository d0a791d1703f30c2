# shellcheck shell=bash
# Sourced first by every script here: their help, their errors, the repository's folder and its Python.

unset CDPATH # with it, cd may go elsewhere
script=$(cd -- "$(dirname -- "$0")" && pwd)/$(basename -- "$0")
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=${root%/*} # $(…) would cut newlines off the end of the folder's own name

# The help of a script is the comment that it begins with.
print_help() {
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$script"
}

# note MESSAGE…: one line on stderr, whatever the names in it hold.
note() {
    local line="${script##*/}: $*"
    printf '%s\n' "${line//[[:cntrl:]]/ }" >&2
}

fail() {
    note "error: $*"
    exit 1
}

usage_error() {
    note "error: $* (-h explains the arguments)"
    exit 2
}

# For scripts without arguments: -h, or nothing.
expect_no_arguments() {
    case ${1-} in
    "") ;;
    -h | --help)
        print_help
        exit 0
        ;;
    *) usage_error "unknown argument: $1" ;;
    esac
}

# The environment that is active, else the repository's, else the system's.
find_python() {
    if [ -z "${VIRTUAL_ENV-}" ] && [ -x "$root/.venv/bin/python" ]; then
        echo "$root/.venv/bin/python"
    else
        command -v python3 || fail "there is no python3 here"
    fi
}

# value_of FLAG VALUE…: prints the value that follows a flag.
value_of() {
    case ${2-} in
    "" | -*) usage_error "$1 needs a value" ;;
    esac
    printf '%s\n' "$2"
}
