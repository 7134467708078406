#!/usr/bin/env bash
# What a GPU host does, most important first, in at most eight minutes; run it from the checkout.
#
#   benchmarks/gpu.sh [WEIGHTS] [PICTURES]       # a ResNet-18 file; a folder of good pictures
#
# Variables: PYTHON (python3), DEVICE (cuda:0; cpu tries the script itself), WHEELS (.whl: a folder
# of wheels for a machine without internet; the torch that is there stays), OUT (gpu-results).
# Each step prints as it goes, is bounded, and adds its figures to $OUT/gpu.json at once, so that a
# cut leaves what was done. Running it again repeats everything.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} device=${DEVICE:-cuda:0} wheels=${WHEELS:-.whl} out=${OUT:-gpu-results}
weights=${1:-random} pictures=${2:-drawn}
mkdir -p "$out"
start=$SECONDS

step() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "== $name ($((SECONDS - start)) s)"
    timeout "$limit" "$@" 2>&1 | tail -n 40
    local status=${PIPESTATUS[0]}
    echo "== $name: exit $status"
    "$python" benchmarks/gpu.py note "$out/gpu.json" "exit_$name" "$status"
}

if ! "$python" -c 'import dfm_mlflow, mlflow' 2>/dev/null; then
    # Neither torch nor torchvision: the machine's own fit its driver.
    "$python" -m pip install --quiet --no-index --no-deps "$wheels"/*.whl || exit 1
    "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation -e . || exit 1
fi
gpu() { "$python" benchmarks/gpu.py "$@" --device "$device" --weights "$weights" --out "$out/gpu.json"; }
step device 30 "$python" benchmarks/gpu.py about "$out/gpu.json" --device "$device"
step tests 120 "$python" -m pytest -m gpu -q -p no:cacheprovider
step serving 150 gpu serve --pictures "$pictures"
step network 90 "$python" benchmarks/cuda.py --weights "$weights" --device "$device" \
    --pictures "${N_PICTURES:-256}"
step fit 60 gpu fit
"$python" benchmarks/gpu.py note "$out/gpu.json" seconds "$((SECONDS - start))"
cat "$out/gpu.json"
