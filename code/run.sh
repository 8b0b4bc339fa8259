#!/usr/bin/env bash
# Runs the whole chapter: environment, packages, then the five scripts in order.
#
#     bash code/run.sh
set -u
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt

times=""
for script in "$root"/code/chapter02_dpo/[0-4]-*.py; do
    name="$(basename "$script")"
    printf '\n=== %s\n' "$name"
    began=$SECONDS
    python "$script" || { status=$?; echo "error: $name failed; its own message is above" >&2; exit $status; }
    times+="$(printf '%8d s  %s' $((SECONDS - began)) "$name")"$'\n'
done
printf '\nThe whole chapter ran. Results are in %s\n%s' "$root/output" "$times"
