#!/usr/bin/env bash
# Everything that needs a GPU, in one call: checks, then figures, written to the folder given (default docs/results).
#     bench/gpu.sh [FOLDER]
# Needs torch with CUDA and triton, transformers, pydantic; with trl and datasets, training is compared with TRL too.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-docs/results}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=.
status=0
"$python" -m pytest -q -m gpu -p no:cacheprovider tests/engine tests/models tests/train/test_packing.py || status=1
"$python" bench/engine_gpu.py --peers Llama-3.2-1B --variants Llama-3.2-1B --json "$out/engine-gpu.json" || status=1
if [ -f bench/train_gpu.py ]; then "$python" bench/train_gpu.py --json "$out/train-gpu.json" || status=1; fi
exit $status
