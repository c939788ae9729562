#!/usr/bin/env bash
# The whole project on an invented town, through the commands that a user runs. `make demo` starts it.
#
#   SEED    which town (7); any whole number below 1000
#   PRESET  short: a small town, minutes on two CPU cores; long: a medium one, trained for longer; tiny: to see that it runs
#   RUN     where everything is written (runs/demo for the short one); a finished step found there is reused
#   SERVE   1: open the chat at the end; 0: stop before it
#   PORT    of the chat (7860)
set -euo pipefail

SEED=${SEED:-7} PRESET=${PRESET:-short} SERVE=${SERVE:-1} PORT=${PORT:-7860}
if [ "$PRESET$SEED" = short7 ]; then RUN=${RUN:-runs/demo}; else RUN=${RUN:-runs/demo_${PRESET}_$SEED}; fi
BASES=train/toy_base/models
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} HF_HUB_OFFLINE=1

case $PRESET in
  tiny) size=tiny stage1=(--num_epochs 4) stage2=(--num_train_epochs 1) ;;
  short) size=small stage1=() stage2=() ;;
  long) size=medium stage1=(--num_epochs 20) stage2=(--num_train_epochs 4) ;;
  *) echo "error: PRESET=$PRESET: allowed: short, long, tiny" >&2; exit 2 ;;
esac

# Told now and not after ten minutes.
[ "$SERVE" = 0 ] || python -c 'import socket, sys; socket.create_server(("127.0.0.1", int(sys.argv[1])))' "$PORT" 2> /dev/null || {
  echo "error: PORT=$PORT: something listens there already; name another one (make demo PORT=7861), or SERVE=0 for no chat" >&2
  exit 2
}

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
  printf '%s\t%d\n' "$title" "$((SECONDS - begun))" >> "$RUN/times.tsv"
}

# 1. A town with its map and its photos, and from them addresses, captions and conversations.
step "a town" python -m data_gen.toy_city --seed "$SEED" --size "$size" --output "$RUN/city"
step "data" python -m data_gen.build --config data_gen/configs/toy_city.yaml \
  --output "$RUN/data" --image_root "$RUN/city" --photos_csv "$RUN/city/photos.csv" \
  --streets "$RUN/city/city.osm.pbf" --neighbourhoods "$RUN/city/neighbourhoods.geojson" \
  --captions_csv "$RUN/city/captions.csv"

# 2. Stage 1: toy-clip, which has seen other towns, becomes the AddressCLIP of this one. Two processes.
step "stage 1: AddressCLIP" accelerate launch --multi_gpu --main_process_port "$(free_port)" --num_processes 2 --num_machines 1 --mixed_precision no \
  --dynamo_backend no train/stage1_clip.py --config train/configs/stage1_demo.yaml \
  --data "$RUN/data" --base "$BASES/toy-clip" --output "$RUN/stage1" "${stage1[@]}"

# 3. Stage 2: toy-llava with that encoder's tower; LoRA and projector, DeepSpeed ZeRO-2, two processes.
step "stage 2: LLaVA-IAL" deepspeed --num_gpus 2 --master_port "$(free_port)" train/stage2_llava.py --config train/configs/stage2_demo.yaml \
  --data "$RUN/data" --base "$BASES/toy-llava" --clip "$RUN/stage1" --output_dir "$RUN/stage2" "${stage2[@]}"

# 4. How far its probabilities can be trusted, measured on validation photos; the report and the chat say so.
# Some photos of another town tell how well it knows what it has never seen.
step "another town" python -m data_gen.toy_city --seed "$(((SEED + 500) % 1000))" --size tiny --output "$RUN/elsewhere"
step "calibration" python -m serve.calibrate --model "$RUN/stage2" --data "$RUN/data" --elsewhere "$RUN/elsewhere/photos"

# 5. Photos from another day: every question in batches, beside what needs no training in this town. Two processes.
# (The untuned encoder, located alike, would look at all parts of all photos for minutes; docs/toy_city.md has its figures.)
step "evaluation" accelerate launch --multi_gpu --main_process_port "$(free_port)" --num_processes 2 --num_machines 1 --mixed_precision no \
  --dynamo_backend no -m serve.evaluate --model "$RUN/stage2" --data "$RUN/data" --split test \
  --baselines "$BASES/toy-clip" --untuned_alike false --output "$RUN/evaluation"

printf '\nall steps: %d s\nreport: %s\n' "$((SECONDS - started))" "$RUN/evaluation/report.html"

# 6. The chat, with photos of the town to try.
[ "$SERVE" = 0 ] || exec python -m serve.chat --port "$PORT" --model "$RUN/stage2" --examples "$RUN/data"
