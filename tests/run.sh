#!/usr/bin/env bash
# Runs the tests, in the same environment as code/run.sh. What follows goes to pytest.
#
#     bash tests/run.sh
#     bash tests/run.sh quick    ruff, and the tests that train and generate nothing
set -u
. "$(dirname "${BASH_SOURCE[0]}")/../code/setup.sh" requirements.txt tests/requirements.txt
cd "$root" || exit 1
ruff check --quiet . || { echo "error: ruff check; its findings are above, and ruff check --fix mends some" >&2; exit 1; }
ruff format --quiet --check . || { echo "error: not in ruff's form: $(ruff format --check . | head -1); run: ruff format" >&2; exit 1; }
export OMP_NUM_THREADS=1 # two test processes at a time, on two cores
if [ "${1:-}" = quick ]; then shift; set -- -m quick "${@:-tests}"; fi
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${@:-tests}"
