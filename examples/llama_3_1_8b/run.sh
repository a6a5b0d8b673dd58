#!/usr/bin/env bash
# A draft for Llama-3.1-8B-Instruct from ShareGPT, with the prototypes' published hyperparameters.
#
#   run.sh eagle3|hass GPUS SHAREGPT.json [WORK]
#
# The optimizer step is that of eight GPUs whatever GPUS is: one GPU accumulates. Every stage goes on where it was stopped,
# so that the same command is the way to resume. MODEL and DRAFT name another verifier and draft config; GENERATE, VOCABULARY
# and TRAIN hold further flags of the three commands.
set -euo pipefail

algorithm=$1 gpus=$2 data=$3 work=${4:-work_$1}
here=$(cd "$(dirname "$0")" && pwd)
model=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
draft=${DRAFT:-$here/draft_$algorithm.json}
read -ra generate <<< "${GENERATE:-}"
read -ra vocabulary <<< "${VOCABULARY:-}"
read -ra train <<< "${TRAIN:-}"

case $algorithm in
    eagle3) samples_per_gpu=1 ;;
    hass) samples_per_gpu=2 ;;
    *) echo "error: command line: algorithm: found $algorithm, expected eagle3 or hass" >&2; exit 2 ;;
esac
if (( 8 % gpus )); then
    echo "error: command line: GPUS: found $gpus, expected 1, 2, 4 or 8" >&2
    exit 2
fi

python -m ports records --algorithm "$algorithm" --verifier "$model" --out "$work/records" --total-gpus "$gpus" \
    --dataset sharegpt --data "$data" \
    --on-bad-conversation skip ${generate[@]+"${generate[@]}"}

maps=()
if [[ $algorithm == eagle3 ]]; then
    [[ -f $work/records/vocabulary.json ]] || python -m ports vocabulary --data "$work/records" \
        --verifier "$model" --draft-config "$draft" ${vocabulary[@]+"${vocabulary[@]}"}
    maps=(--t2d "$work/records/t2d.npy" --d2t "$work/records/d2t.npy")
fi

launch=(--num_processes "$gpus")
(( gpus == 1 )) || launch+=(--multi_gpu)
accelerate launch "${launch[@]}" --mixed_precision bf16 -m ports train "$algorithm" \
    --verifier "$model" --draft-config "$draft" --data "$work/records" --out "$work/checkpoints" ${maps[@]+"${maps[@]}"} \
    --epochs 5 --batch-size "$samples_per_gpu" --gradient-accumulation-steps $(( 8 / gpus )) \
    --topk 1 --lr 8e-5 --ttt-steps 3 --resume auto --save-steps 500 --keep-last 3 \
    ${train[@]+"${train[@]}"}
