#!/bin/sh
# predict.sh [INPUT OUTPUT [OPTION ...]]: segment a folder of CT scans.
# Without arguments: /inputs -> /outputs where /inputs is mounted, else /workspace/inputs -> /workspace/outputs.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ $# -lt 2 ]; then
    root=/workspace
    if [ -d /inputs ]; then root=; fi
    set -- "$root/inputs" "$root/outputs" "$@"
fi
# In the image, root gives up its rights and becomes the owner of the output folder, if that user can do the work. The
# masks then belong to whoever made the folder. Where root made it, or may not change users, root stays.
drop=
if [ -n "${DROP_ROOT-}" ] && [ "$(id -u)" = 0 ] && owner=$(stat -c %u "$2" 2>/dev/null) && [ "$owner" != 0 ]; then
    become="setpriv --reuid $owner --regid $(stat -c %g "$2") --clear-groups --no-new-privs"
    if $become sh -c 'test -r "$1" && test -x "$2" && test -w "$2"' sh "$1" "$2" 2>/dev/null; then drop=$become; fi
fi
# Nothing is imported from the working directory (-P), from the user's own packages (-s), or in Apptainer, which brings
# the host's home folder and environment into the container, from the Python that the host's environment names.
if [ -n "${APPTAINER_CONTAINER-}${SINGULARITY_CONTAINER-}" ]; then unset PYTHON PYTHONHOME PYTHONPLATLIBDIR; fi
PYTHONPATH="$here" exec $drop "${PYTHON:-python3}" -s -P -m app "$@"
