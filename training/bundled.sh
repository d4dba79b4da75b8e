#!/bin/sh
# bundled.sh fast|paper DATA CASE ...: train a bundled model on all of DATA but these cases. Run it again to resume.
#
# Both models go on from the bundled weights.
#
# It takes only the CPU time that nothing else wants: the idle scheduling class, the lowest priority of its own
# scheduling group (without that, Linux gives a background session its full share), one thread per process, and threads
# that sleep while they wait. SIGTERM saves the checkpoint.
set -eu
model=$1 data=$2
shift 2
hold_out=$*
PYTHON=${PYTHON:-python3}
phantoms=cache/phantoms
gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 0 ]; then
    processes=${PROCESSES:-$gpus} paper=paper_ours
else
    processes=${PROCESSES:-$(nproc)} paper=paper_tune # before OMP_NUM_THREADS is set, which nproc would obey
fi
case $model in
fast) recipe=fast_tune ;;
paper) recipe=$paper ;;
*)
    echo "$0: no model '$model'; expected fast or paper" >&2
    exit 2
    ;;
esac
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
worker='if [ -w /proc/self/autogroup ]; then echo 19 > /proc/self/autogroup; fi; exec "$0" -m training "$@"'

# How often scans are drawn: automatic labels, many scans of one patient, or images rebuilt with losses count less.
weights="hcc=0.35 rad=0.5 cort=0.4 acrin=0.5 ohif=0.4 phantom=0.2 crlm=0.8 cptac=0.8 lits=0.15
    nihpanc=0.3 nihhu=0.1 curvas=0.7 kits=0.3 msdspleen=0.3"
separate="nihpanc nihhu curvas kits msdspleen"

# Without some phantoms it forgets them, and with them the demo.
for seed in 11 12 13 14 15 16; do
    label=$phantoms/labelsTr/phantom$seed.nii.gz
    [ -e $label ] || "$PYTHON" -m phantom $phantoms/imagesTr/phantom${seed}_0000.nii.gz $label \
        --shape 512 512 60 --spacing 0.8 0.8 5 --seed $seed
done

set --
for case in $hold_out; do set -- "$@" --hold-out "$case"; done
for weight in $weights; do set -- "$@" --sampling-weight "$weight"; done
for prefix in $separate; do set -- "$@" --separate-slices "$prefix"; done
# torchrun starts every worker in a session, and so a scheduling group, of its own.
chrt -i 0 "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$processes" --no-python \
    sh -c "$worker" "$PYTHON" train "$recipe" "runs/$recipe" --data "$data" --data $phantoms --start-from "$model" \
    --minutes "${MINUTES:-150}" --validate-minutes 0 --keep-minutes 5 "$@"
