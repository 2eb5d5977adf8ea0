#!/usr/bin/env bash
# Makes files of this folder again, on a host with a GPU, TensorRT and the package installed; several jobs may run at a time, each on
# a GPU of its own, but one that is timed should be alone on its card.
#
#   measure.sh OUT JOB...     CUDA_VISIBLE_DEVICES says on which GPU; each job leaves OUT/JOB/log, OUT/JOB/rc and what it wrote.
#                             `plans` goes before `moe` and `dense`, `model` and then `recipe-fp8-row-block` before `serving`
#
#   COMMIT   written into results (default: asked of git)         SERVER   program or unpacked wheel of a server, for `serving`
#   WORK     keeps weights, graphs and plans of benchmarks        STATE    keeps trained references
#   MODEL    folder of a random 4B-A0.5B and its requests         PARTS    minutes of a part of a reference (default 25)
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
out=$(realpath -m "${1:?usage: measure.sh OUT JOB...}"); shift
COMMIT=${COMMIT:-$(git -C "$here" rev-parse --short HEAD)}
WORK=$(realpath -m "${WORK:-$out/work}") MODEL=$(realpath -m "${MODEL:-$out/model}") STATE=$(realpath -m "${STATE:-$out/references}")
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | grep -o '[ABHL][0-9][0-9]*' | tr A-Z a-z)
torch=(--baseline torch-cuda-graph --baseline torch-compile)
moe=(--size 4B-A0.5B --recipe fp16+kernels --recipe fp8-row-block+kernels --case 32x512x512 --case 8x512x512 --case 1x512x512
  --case 32x512x3000 --case 32x128-256-512x512)
dense=(--size 1B --recipe fp16+kernels --recipe fp8-static+kernels --recipe fp8-row+kernels --case 32x512x512 --case 1x512x512)

bench() { onerec-trt bench "$@" --work "$WORK" --commit "$COMMIT"; }

model() { # a checkpoint of random weights and 128 requests of each kind
  [ -e "$MODEL/heldout.parquet" ] || onerec-trt dev random-model 4B-A0.5B --out "$MODEL" --requests 128
}

recipe() { # NAME: a recipe of configs/ from the checkpoint to its validated plans
  model && cd "$MODEL" && cp "$here/configs/4b-a0.5b-$1.yaml" . || return
  onerec-trt run "4b-a0.5b-$1.yaml"
  local status=$?
  cp "out/4b-a0.5b-$1/validated-tensorrt/validation.json" "$to/$card-4b-a0.5b-$1-validation.json" && return $status
}

reference() { # SIZE: trained, measured in every precision, and through the pipeline
  onerec-trt dev reference --size "$1" --seed 1 --state "$STATE" --out "$to/results" --minutes "${PARTS:-25}" --requests 2048 \
    --engine tensorrt --engine-requests 1024 --commit "$COMMIT"
}

job() {
  case $1 in
    plans) bench "${moe[@]}" --plans-only && bench "${dense[@]}" --plans-only ;; # ahead of `moe` and `dense`, which find them
    moe) bench "${moe[@]}" "${torch[@]}" --out "$to/$card-moe.json" ;;
    dense) bench "${dense[@]}" "${torch[@]}" --out "$to/$card-dense-kernels.json" ;;
    operators) onerec-trt dev bench-operators --commit "$COMMIT" --out "$to/$card-operators.json" ;;
    # The batches in ascending order: the plan with open beams is then that of `moe`.
    items) onerec-trt dev bench-items --case 1x512x512 --case 8x512x512 --case 32x512x512 --work "$WORK" --commit "$COMMIT" \
      --out "$to/$card-items.json" ;;
    model) model ;;
    recipe-*) recipe "${1#recipe-}" ;; # recipe-fp8-row-block is the shipped one
    serving) onerec-trt dev serving "$MODEL"/out/4b-a0.5b-fp8-row-block/plans-tensorrt/*-3072.plan --server "$SERVER" \
      --commit "$COMMIT" --out "$to/$card-serving.json" ;;
    reference-*) reference "${1#reference-}" ;; # reference-0.1B, reference-0.1B-moe; again until it exits with 0 or 2
    tests) cd "$here" && python3 -m pytest tests/gpu -n 6 ;;
    *) echo "no job $1"; return 1 ;;
  esac
}

bad=0
for each; do
  to=$out/$each; mkdir -p "$to"; rm -f "$to/rc"
  (job "$each") > "$to/log" 2>&1 < /dev/null; status=$?
  echo $status > "$to/rc"; echo "$each: $status, see $to/log"; [ $status = 0 ] || bad=1
done
exit $bad
