#!/usr/bin/env bash
# Everything that only a GPU can show, in one command and under ten minutes:
#
#     benchmarks/gpu.sh runs/gpu             # a GPU; the figures and the log lie in runs/gpu
#     benchmarks/gpu.sh runs/gpu --small     # a trial on any machine
#
# First that replicas and overflow are exact on the GPU, split into four; then the figures.
# PYTHON names the interpreter, by default that of .venv. Ends with 1 if anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:?name the folder for the figures}
shift
python=${PYTHON:-.venv/bin/python}
mkdir -p "$output"
failed=0
export TF_CPP_MIN_LOG_LEVEL=2 TF_GPU_THREAD_MODE=gpu_private

exact=(tests/training/test_replica_matrix.py tests/training/test_loop_rules.py)
if [[ " $* " == *" --small "* ]]; then
    exact=(tests/training/test_loop_rules.py -k "Overflow and nan_in_float32")
fi
timeout 200 "$python" -m pytest -q -n 2 -p no:cacheprovider "${exact[@]}" > "$output/exact.txt" 2>&1 || failed=1
tail -n 1 "$output/exact.txt"

"$python" benchmarks/gpu.py --output="$output" "$@" || failed=1
exit "$failed"
