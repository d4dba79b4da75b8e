#!/usr/bin/env bash
# Run the image on a phantom as the organisers do, then locked down, and compare both masks with one made outside.
# Needs DOCKER, IMAGE and PYTHON (see the Makefile).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$(dirname "$0")/.."
"$PYTHON" -m phantom "$work/inputs/phantom_0000.nii.gz" --shape 512 512 40 --spacing 0.8 0.8 7
sh_in() { mkdir -p "$work/$1"; chmod 777 "$work/$1"; }

timed() {  # timed NAME COMMAND ...: seconds from its start to its return
    local name=$1 start end; shift
    start=$(date +%s.%N); "$@"; end=$(date +%s.%N)
    awk -v n="$name" -v a="$start" -v b="$end" 'BEGIN { printf "%s: %.1f s\n", n, b - a }'
}

sh_in outside; sh_in outputs; sh_in locked
if [ "$(id -u)" = 0 ]; then chown 4321:4321 "$work/outputs"; chmod 755 "$work/outputs"; fi
PREDICT_PYTHON=$PYTHON timed "outside the container" sh predict.sh "$work/inputs" "$work/outside"
timed "docker run, the organisers' command" \
    "$DOCKER" container run --gpus="device=0" --name "$IMAGE" --rm \
    -v "$work/inputs/:/workspace/inputs/" -v "$work/outputs/:/workspace/outputs/" \
    "$IMAGE:latest" /bin/bash -c "sh predict.sh"
timed "docker run, locked down" \
    "$DOCKER" container run --rm --network none --read-only --tmpfs /tmp -u 1234:1234 --cap-drop ALL \
    --security-opt no-new-privileges --shm-size 64m -m 4g \
    -v "$work/inputs:/inputs:ro" -v "$work/locked:/outputs" "$IMAGE:latest"
"$PYTHON" - "$work" <<'PY'
import sys
import pathlib
import nibabel as nib
import numpy as np

work = pathlib.Path(sys.argv[1])
masks = {name: nib.load(work / name / "phantom.nii.gz") for name in ("outside", "outputs", "locked")}
arrays = {name: np.asarray(mask.dataobj) for name, mask in masks.items()}
for name in ("outputs", "locked"):
    differing = int(np.sum(arrays[name] != arrays["outside"]))
    print(f"{name}: {differing} of {arrays[name].size} voxels differ from the mask made outside the container")
    if differing or (masks[name].affine != masks["outside"].affine).any():
        sys.exit(1)
if len(np.unique(arrays["outside"])) < 5:
    sys.exit(f"labels found: {np.unique(arrays['outside'])}; expected all four organs")
owner, folder = ((work / "outputs" / name).stat().st_uid for name in ("phantom.nii.gz", ""))
print(f"outputs: the folder belongs to user {folder}, the mask to user {owner}")
if owner != folder:
    sys.exit(1)
files = sorted(path.name for path in (work / "outputs").iterdir())
if files != ["phantom.nii.gz", "run_log.jsonl"]:
    sys.exit(f"outputs hold {files}")
PY
echo "container test passed"
