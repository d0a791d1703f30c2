# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh, after common.sh, from the repository's root: `prepare_environment FILE…` makes
# .venv hold what the requirements files name. It remembers what it installed, so that a second call takes no time.

prepare_environment() {
    local python=${PYTHON:-python3} requirements wanted stamp=.venv/installed.txt
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "Python 3.10 or newer is needed, and $("$python" --version 2>&1) was found;" \
            "name another: PYTHON=python3.12 bash ${script:?}" >&2
        return 1
    fi
    if [ ! -x .venv/bin/python ]; then
        echo "Creating the environment .venv ($("$python" --version))"
        "$python" -m venv .venv || {
            echo "The environment could not be made; on Debian and Ubuntu: apt-get install python3-venv" >&2
            return 1
        }
    fi
    for requirements in "$@"; do
        wanted="$(cksum "$requirements" requirements*.txt | tr '\n' ' ')"
        if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
            echo "Installing $requirements into .venv (some minutes the first time)"
            .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
            echo "$wanted" >>"$stamp"
        fi
    done
}
