#!/usr/bin/env bash
# Everything that needs a GPU: checks, then figures, written to the folder given (default docs/results).
#     bench/gpu.sh [FOLDER] [tests|engine|products|ways|train]...
# Without parts all of them, in this order: engine runs a peer too, ways are the engine with parts turned off.
# Needs torch with CUDA and triton, transformers, pydantic; with trl and datasets, training is compared with TRL too.
set -uo pipefail
case ${1:-} in -h | --help) sed -n '2,5s/^# *//p' "$0"; exit ;; esac
cd "$(dirname "$0")/.."
out=docs/results
case ${1:-tests} in tests | engine | products | ways | train) ;; *) out=$1; shift ;; esac
if [ $# -eq 0 ]; then set -- tests engine products ways train; fi
for part; do
  case $part in tests | engine | products | ways | train) ;; *) echo "no such part: $part; give some of tests, engine, products, ways, train" >&2; exit 2 ;; esac
done
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
status=0

tests() {
  # Warnings of other versions of torch are no failures here.
  local pytest=("$python" -m pytest -q -W default -p no:cacheprovider --durations=5)
  # The host compiles, and is most of the time, so several processes share the GPU where they can.
  if "$python" -c "import xdist" 2>/dev/null; then pytest+=(-n 8); fi
  "${pytest[@]}" -m gpu tests/engine tests/models tests/train/test_packing.py tests/train/test_torch_backend.py || status=1
  "${pytest[@]}" tests/engine/test_heads.py tests/engine/test_tiles.py tests/engine/test_joined.py || status=1
}

for part; do
  started=$SECONDS
  case $part in
    tests) tests ;;
    engine) "$python" bench/engine_gpu.py --peers Qwen2.5-0.5B Llama-3.2-1B Llama-3.2-3B \
      --json "$out/engine-gpu.json" || status=1 ;;
    products) "$python" bench/products_gpu.py --json "$out/products-gpu.json" || status=1 ;;
    ways) "$python" bench/engine_gpu.py --shapes Qwen2.5-0.5B --sequences 64 --variants Qwen2.5-0.5B \
      --json "$out/engine-gpu-ways.json" || status=1 ;;
    train) "$python" bench/train_gpu.py --json "$out/train-gpu.json" || status=1 ;;
  esac
  echo "$part: $((SECONDS - started)) s"
done
exit $status
