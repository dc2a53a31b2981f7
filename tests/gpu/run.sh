#!/usr/bin/env bash
# What only a GPU can show: correctness of the learner and the torch engine on CUDA, then speed, memory and MFU.
#
#   bash tests/gpu/run.sh [FOLDER]     results and logs go to FOLDER, default ./gpu-results
#
# It needs Linux, Python 3.11 or 3.12 with torch (CUDA) and transformers, and the packages of pyproject.toml; it installs
# nothing. PYTHON names the interpreter. Each part has a limit of its own and the next one runs whatever became of it;
# in all it stays under ten minutes on one H100. PARTS="tests learner optimizer engine run" chooses. The last line is one JSON object.
set -u
cd "$(dirname "$0")/../.."
out=${1:-gpu-results}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH="$PWD:$PWD/proto${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTORCH_ALLOC_CONF=expandable_segments:True
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

part() { # NAME SECONDS COMMAND...: runs a part, keeps its output, and notes how it ended
  local name=$1 seconds=$2
  shift 2
  case " ${PARTS:-tests learner optimizer engine run} " in *" ${name%%-*} "*) ;; *) return ;; esac
  echo "== $name: $*"
  local began=$SECONDS
  timeout --kill-after=10 "$seconds" "$@" > "$out/$name.out" 2> "$out/$name.err"
  local code=$?
  tail -n 4 "$out/$name.out" | cut -c1-400
  [ $code = 0 ] || tail -n 25 "$out/$name.err" | cut -c1-300
  echo "$name $code $((SECONDS - began))" >> "$out/parts.txt"
}

: > "$out/parts.txt"
"$python" -m tests.gpu.machine > "$out/machine.json" || exit 1
cat "$out/machine.json"
routershift=("$python" -m services.cli.main)
part tests 140 "$python" -m pytest -q -p no:cacheprovider tests/gpu
part learner-bf16 180 "${routershift[@]}" bench learner --device cuda --dtype bfloat16 --shape qwen3-30b-a3b-layers4 --pairs 3 --experts 128 --json
part learner-small 60 "${routershift[@]}" bench learner --device cuda --dtype float32 --shape qwen3-moe-115m --pairs 5 --experts 64 --json
part optimizer 30 "${routershift[@]}" bench optimizer --device cuda --values 250000000 --rounds 3 --json
part optimizer-fused 30 "${routershift[@]}" bench optimizer --device cuda --values 250000000 --rounds 3 --fused --json
part engine 70 "${routershift[@]}" bench torch-engine --device cuda --rounds 3 --json
part run 90 "${routershift[@]}" run deploy/recipes/countdown.toml --set generation.engine=torch \
  --set generation.device=cuda --set learner.device=cuda --set "run.folder=$out/runs" --set run.steps=20
"$python" -m tests.gpu.machine "$out"
