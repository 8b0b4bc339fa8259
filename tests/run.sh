#!/usr/bin/env bash
# Runs the tests, in the same environment as code/run.sh. Arguments go to pytest.
#
#     bash tests/run.sh
set -u
. "$(dirname "${BASH_SOURCE[0]}")/../code/setup.sh" requirements.txt tests/requirements.txt
export OMP_NUM_THREADS=1 # two test processes at a time, on two cores
cd "$root" && exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${@:-tests}"
