#!/bin/sh
# predict.sh [INPUT OUTPUT [OPTION ...]]: segment a folder of CT scans.
# Without arguments: /inputs -> /outputs where /inputs is mounted, else /workspace/inputs -> /workspace/outputs.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ $# -lt 2 ]; then
    root=/workspace
    if [ -d /inputs ]; then root=; fi
    set -- "$root/inputs" "$root/outputs" "$@"
fi
# -P: what lies in the working directory is never imported.
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -P -m app "$@"
