# Sourced by code/run.sh and tests/run.sh, with the requirements files as arguments: puts an environment with them first on PATH.
# Uses the environment that is active (venv or conda); otherwise .venv in the repository, which it makes if there is none.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    if [ ! -x "$root/.venv/bin/python" ]; then
        echo "Making .venv ..."
        python3 -m venv --clear "$root/.venv" || { command -v uv >/dev/null && uv venv --clear "$root/.venv"; } ||
            { echo "error: 'python3 -m venv' failed; on Debian, Ubuntu or Colab: apt install python3-venv" >&2; exit 1; }
    fi
    export VIRTUAL_ENV="$root/.venv" PATH="$root/.venv/bin:$PATH"
fi

python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: Python 3.11 or newer is needed; here it is $(python -V 2>&1); leave this environment, or make .venv with a newer one" >&2; exit 1; }

# uv makes environments without pip
if ! python -m pip --version >/dev/null 2>&1; then
    { command -v uv >/dev/null && uv pip install --quiet --python "$(command -v python)" pip; } || python -m ensurepip >/dev/null ||
        { echo "error: this environment has no pip; give it one and run this again (uv pip install pip; on Debian: apt install python3-venv)" >&2; exit 1; }
fi

for file in "$@"; do
    python -m pip install --quiet --disable-pip-version-check -r "$root/$file" ||
        { echo "error: pip could not install $file; its own message is above (if it names a certificate: set PIP_CERT to that of your proxy)" >&2; exit 1; }
done
