#!/bin/sh
# paper.sh DATA CASE ...: train the paper's network on all but these cases, in two parts, the second from the first; run
# it again to go on.
#
# It takes what CPU time nothing else wants: the idle scheduling class, the lowest priority of its own scheduling group
# (without that, Linux gives a background session its full share), one thread per process and short spinning. SIGTERM
# saves the checkpoint.
set -eu
data=$1
shift
hold_out=$*
PYTHON=${PYTHON:-python3}
phantoms=cache/phantoms coarse=runs/paper_coarse ours=runs/paper_ours
gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 0 ]; then
    processes=${PROCESSES:-$gpus} coarse_batch=32 batch=24
else # as many crops as two processes of a CPU have memory for, 6 GiB each
    processes=${PROCESSES:-$(nproc)} coarse_batch=8 batch=4 # before the next line, which nproc would obey
fi
export OMP_NUM_THREADS=1 GOMP_SPINCOUNT=6000
worker='if [ -w /proc/self/autogroup ]; then echo 19 > /proc/self/autogroup; fi; exec "$0" -m training "$@"'

part() { # part RECIPE RUN MINUTES OPTION ...
    recipe=$1 run=$2 minutes=$3
    shift 3
    for case in $hold_out; do set -- "$@" --hold-out "$case"; done
    # torchrun starts every worker in a session, and so a scheduling group, of its own.
    chrt -i 0 "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$processes" --no-python \
        sh -c "$worker" "$PYTHON" train "$recipe" "$run" --data "$data" --data $phantoms --minutes "$minutes" --validate-minutes 0 --keep-minutes 5 \
        --sampling-weight hcc=0.35 --sampling-weight rad=0.5 --sampling-weight cort=0.4 --sampling-weight acrin=0.5 \
        --sampling-weight ohif=0.4 --sampling-weight phantom=0.2 --sampling-weight crlm=0.8 --sampling-weight cptac=0.8 "$@"
}

# Without some phantoms it forgets them, and with them the demo.
for seed in 11 12 13 14 15 16; do
    label=$phantoms/labelsTr/phantom$seed.nii.gz
    [ -e $label ] || "$PYTHON" tests/phantom.py $phantoms/imagesTr/phantom${seed}_0000.nii.gz $label \
        --shape 512 512 60 --spacing 0.8 0.8 5 --seed $seed
done

[ -e $coarse/last.pt ] || "$PYTHON" -m training grow fast --recipe paper_coarse --to $coarse
# The first part is over once the second has begun; to train it longer, remove the second's run.
[ -e $ours ] || part paper_coarse $coarse "${COARSE_MINUTES:-60}" --batch $coarse_batch
part paper_ours $ours "${MINUTES:-120}" --batch $batch --start-from $coarse
