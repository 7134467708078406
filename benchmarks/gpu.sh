#!/usr/bin/env bash
# What a GPU host does, most important first, in at most eight minutes beside the installation; run
# it from the checkout.
#
#   benchmarks/gpu.sh [WEIGHTS]       # a ResNet-18 file; random without one, and then no peer
#
# Variables: PYTHON (python3), DEVICE (cuda:0; cpu tries the script itself), WHEELS (.whl: a folder
# of wheels for a machine without internet; the torch that is there stays), OUT (gpu-results),
# ANOMALIB_VENV (the environment of PYTHON: its anomalib is the peer, where there is one),
# N_PICTURES (256), STEPS (all: "device tests serving network decode fit pictures peer").
# Each step prints as it goes, is bounded, and adds its figures to $OUT/gpu.json at once, so that a
# cut leaves what was done. Running it again repeats everything.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} device=${DEVICE:-cuda:0} wheels=${WHEELS:-.whl} out=${OUT:-gpu-results}
weights=${1:-random} n=${N_PICTURES:-256}
steps=" ${STEPS:-device tests serving network decode fit pictures peer} "
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
start=$SECONDS patience=1
[ "$device" = cpu ] && patience=6

step() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    [[ $steps == *" $name "* ]] || return 0
    echo "== $name ($((SECONDS - start)) s)"
    timeout -k 5 "$((limit * patience))" "$@" 2>&1 | grep --line-buffered -v -E '^$|INFO'
    local status=${PIPESTATUS[0]}
    echo "== $name: exit $status"
    "$python" benchmarks/gpu.py note "$out/gpu.json" "exit_$name" "$status" > /dev/null
}
gpu() { "$python" benchmarks/gpu.py "$@" --device "$device" --out "$out/gpu.json"; }
export -f gpu
export python device out

if ! "$python" -c 'import dfm_mlflow, mlflow, imagecodecs' 2> /dev/null; then
    # Neither torch nor torchvision: the machine's own fit its driver.
    "$python" -m pip install --quiet --no-index --no-deps --no-compile "$wheels"/*.whl || exit 1
fi
step device 20 "$python" benchmarks/gpu.py about "$out/gpu.json" --device "$device"
step tests 65 "$python" -m pytest -m gpu -q -p no:cacheprovider tests/core tests/network tests/detector
step serving 150 bash -c "gpu serve --weights '$weights' --n $((n < 100 ? n : 100))"
step network 60 "$python" benchmarks/cuda.py --weights "$weights" --device "$device" \
    --pictures "$n" --out "$out/gpu.json"
step decode 30 bash -c "gpu decode --n $((n < 128 ? n : 128))"
step fit 30 bash -c "gpu fit --rows $((n < 256 ? 10000 : 100000)) --cells $((n < 200 ? n : 200))"
venv=${ANOMALIB_VENV:-$("$python" -c 'import sys; print(sys.prefix)')}
if [ -f "$weights" ] && "$venv/bin/python" -c 'import anomalib' 2> /dev/null; then
    category=$(mktemp -d)/drawn
    step pictures 20 "$python" benchmarks/gpu.py pictures "$category" --n "$n"
    step peer 105 "$python" benchmarks/speed.py "$category" --weights "$weights" --rounds 1 --no-memory \
        --anomalib-venv "$venv"
    rm -r "$(dirname "$category")"
fi
"$python" benchmarks/gpu.py note "$out/gpu.json" seconds "$((SECONDS - start))"
cat "$out/gpu.json"
