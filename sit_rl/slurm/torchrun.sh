#!/bin/bash
# torchrun that ends with 0 when a preempted training has saved: sit_rl/slurm/torchrun.sh TORCHRUN-ARGUMENTS …
# A SIGTERM to torchrun itself ends it with 1 whatever its ranks return, so SIGTERM and SIGUSR1 to this script go to the
# ranks alone, as SIGUSR1: they save within --grace, return 0, and so do torchrun and this script.
set -u

told=false
warn() {
  told=true
  kill -USR1 $(cat "/proc/$agent/task/$agent/children") 2>/dev/null
}

torchrun "$@" &
agent=$!
trap warn TERM USR1
# A trapped signal ends `wait` early, with a status above 128, while torchrun goes on.
while wait "$agent"; status=$?; [ "$told" = true ] && [ "$status" -gt 128 ]; do
  told=false
done
exit "$status"
