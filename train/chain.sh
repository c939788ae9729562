#!/usr/bin/env bash
# The whole chain on a few real photos that it learns by heart: is everything connected? `make chain` starts it.
#
#   RUN     where everything is written (runs/chain); a finished step found there is reused
#   SHARED  folder of real data; without its stuttgart/ the project draws a tiny town instead
#   SERVE   1: open the chat at the end; 0: stop before it
set -euo pipefail

RUN=${RUN:-runs/chain} SHARED=${SHARED:-../shared/data} SERVE=${SERVE:-0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} HF_HUB_OFFLINE=1
started=$SECONDS

free_port() { # so that two of these may run on one machine
  python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
step() { # step TITLE COMMAND...: a headline, the command, the time it took
  local title=$1 begun=$SECONDS
  shift
  printf '\n\033[1m== %s\033[0m\n$ %s\n' "$title" "$*"
  "$@"
  printf -- '-- %s: %d s\n' "$title" "$((SECONDS - begun))"
}

# 1. Photos, positions and a street map become addresses, captions and conversations.
clip_tokenizer=()
if [ -d "$SHARED/stuttgart" ]; then
  step "data: photos of Stuttgart" python -m data_gen.build --config data_gen/configs/stuttgart_demo.yaml \
    --output "$RUN/data" --image_root "$SHARED/stuttgart" \
    --photos_csv "$SHARED/stuttgart/mapillary_positions.csv" --streets "$SHARED/stuttgart/streets.geojson"
  clip_tokenizer=(--tokenizer "$SHARED/tokenizers/clip")
else
  step "a drawn town" python -m data_gen.toy_city --seed 7 --size tiny --output "$RUN/city"
  step "data: photos of the drawn town" python -m data_gen.build --config data_gen/configs/toy_city.yaml \
    --output "$RUN/data" --image_root "$RUN/city" --photos_csv "$RUN/city/photos.csv" \
    --streets "$RUN/city/city.osm.pbf" --neighbourhoods "$RUN/city/neighbourhoods.geojson" \
    --captions_csv "$RUN/city/captions.csv"
fi

# 2. Stage 1: AddressCLIP with its three losses, two processes. The tiny CLIP has random weights.
step "base: a tiny CLIP" python -m train.toy_base.clip --output "$RUN/base_clip" --data "$RUN/data" "${clip_tokenizer[@]}"
step "stage 1: AddressCLIP" accelerate launch --multi_gpu --main_process_port "$(free_port)" --num_processes 2 --num_machines 1 --mixed_precision no \
  --dynamo_backend no train/stage1_clip.py --config train/configs/stage1_chain.yaml \
  --data "$RUN/data" --base "$RUN/base_clip" --output "$RUN/stage1"

# 3. Stage 2: LoRA on the language model and the whole projector, DeepSpeed ZeRO-2, two processes.
#    A random LLaMA knows no words, so the tiny one is first pretrained on the text of the questions and answers.
step "base: a tiny LLaVA" python -m train.toy_base.llava --clip "$RUN/base_clip" --data "$RUN/data" \
  --output "$RUN/base_llava"
step "stage 2: LLaVA-IAL" deepspeed --num_gpus 2 --master_port "$(free_port)" train/stage2_llava.py --config train/configs/stage2_chain.yaml \
  --data "$RUN/data" --base "$RUN/base_llava" --clip "$RUN/stage1" --output_dir "$RUN/stage2"

# 4. Every question in batches: a memorisation check on the training photos, and the photos it never saw.
step "evaluation: training photos" python -m serve.evaluate --model "$RUN/stage2" --data "$RUN/data" --split train \
  --output "$RUN/evaluation_train"
step "evaluation: test photos" python -m serve.evaluate --model "$RUN/stage2" --data "$RUN/data" --split test \
  --output "$RUN/evaluation_test"

printf '\nall steps: %d s\n' "$((SECONDS - started))"

# 5. The chat.
[ "$SERVE" = 0 ] || exec python -m serve.chat --model "$RUN/stage2"
