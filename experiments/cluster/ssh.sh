#!/usr/bin/env bash
# One run on several machines by ssh, one process on each:
#   experiments/cluster/ssh.sh HOST,HOST experiments.nth_farthest --preset paper --run-dir /shared/runs/paper
# The clone, and the run directory, have the same path on all. Ctrl-C here saves and stops all.
# PORT, PYTHON, DIRECTORY (of the clone) and SSH (the command) may be set.
set -uo pipefail
IFS=, read -ra hosts <<< "${1:?HOST,HOST MODULE OPTIONS}"
shift
# With its own terminal (-tt) a remote process gets a signal when this end closes.
read -ra remote <<< "${SSH:-ssh -tt}"

started=()
trap 'kill -TERM "${started[@]}" 2> /dev/null' INT TERM HUP
for index in "${!hosts[@]}"; do
  command=$(printf '%q ' "${PYTHON:-python}" -m "$@" --coordinator "${hosts[0]#*@}:${PORT:-12355}" \
    --num-processes "${#hosts[@]}" --process-id "$index")
  "${remote[@]}" "${hosts[$index]}" "cd $(printf '%q' "${DIRECTORY:-$PWD}") && exec $command" < /dev/null &
  started+=($!)
done

code=0
for process in "${started[@]}"; do
  wait "$process"
  ended=$?
  # A trap ends the first wait early; the second one has the exit code.
  if kill -0 "$process" 2> /dev/null; then wait "$process"; ended=$?; fi
  if [ "$ended" -ne 0 ] && [ "$code" -eq 0 ]; then code=$ended; fi
done
exit "$code"
