#!/usr/bin/env bash
# Everything that needs a GPU, in one call: checks, then figures, written to the folder given (default docs/results).
#     bench/gpu.sh [FOLDER]
# Needs torch with CUDA and triton, transformers, pydantic; with trl and datasets, training is compared with TRL too.
set -uo pipefail
case ${1:-} in -h | --help) sed -n '2,4s/^# *//p' "$0"; exit ;; esac
cd "$(dirname "$0")/.."
out=${1:-docs/results}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
status=0
# Warnings of other versions of torch are no failures here.
pytest=("$python" -m pytest -q -W default -p no:cacheprovider)
"${pytest[@]}" tests/engine/test_heads.py tests/engine/test_tiles.py tests/engine/test_joined.py || status=1
"${pytest[@]}" -m gpu tests/engine tests/models tests/train/test_packing.py tests/train/test_torch_backend.py || status=1
"$python" bench/products_gpu.py --json "$out/products-gpu.json" || status=1
"$python" bench/engine_gpu.py --peers Llama-3.2-1B --variants Qwen2.5-0.5B --json "$out/engine-gpu.json" || status=1
if [ -f bench/train_gpu.py ]; then "$python" bench/train_gpu.py --json "$out/train-gpu.json" || status=1; fi
exit $status
