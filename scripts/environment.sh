# shellcheck shell=bash
# Sourced after common.sh, from the repository's root: `prepare_environment FILE…` makes .venv hold what the requirements
# files name, `prepare_serving_environment` makes .venv-serve hold requirements-serve.txt above .venv. They remember what
# they installed, so that a second call takes no time.

prepare_environment() {
    _make_environment .venv && _install .venv "$@"
}

# NVIDIA's server needs another numpy than the rest: what .venv-serve has itself goes before what .venv has.
prepare_serving_environment() {
    local above below find='import sysconfig; print(sysconfig.get_path("purelib"))'
    prepare_environment requirements.txt && _make_environment .venv-serve || return
    below=$(.venv/bin/python -c "$find") && above=$(.venv-serve/bin/python -c "$find") || return
    printf '%s\n' "$below" >"$above/base.pth" || return
    _install .venv-serve requirements-serve.txt
}

# _make_environment FOLDER: .venv by the Python that there is, others by .venv's.
_make_environment() {
    local environment=$1 python=${PYTHON:-python3}
    [ "$environment" = .venv ] || python=.venv/bin/python
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "Python 3.10 or newer is needed, and $("$python" --version 2>&1) was found;" \
            "name another: PYTHON=python3.12 bash ${script:?}" >&2
        return 1
    fi
    if [ ! -x "$environment/bin/python" ]; then
        echo "Creating the environment $environment ($("$python" --version))"
        "$python" -m venv "$environment" || {
            echo "The environment could not be made; on Debian and Ubuntu: apt-get install python3-venv" >&2
            return 1
        }
    fi
}

# _install FOLDER FILE…
_install() {
    local environment=$1 requirements wanted stamp=$1/installed.txt
    shift
    for requirements in "$@"; do
        wanted="$(cksum "$requirements" requirements*.txt | tr '\n' ' ')"
        if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
            echo "Installing $requirements into $environment (some minutes the first time)"
            # Python compiles what it imports: to compile all takes as long as all the rest.
            "$environment/bin/python" -m pip install --no-compile --quiet --disable-pip-version-check -r "$requirements" || return
            echo "$wanted" >>"$stamp"
        fi
    done
}
