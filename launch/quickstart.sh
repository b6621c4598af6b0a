#!/usr/bin/env bash
# From nothing to a trained model: sets up .venv, trains on the built-in easy scenes (6 minutes on 2 cores), evaluates on pictures and
# colour-shape pairs that training never showed, and draws predictions. Results: runs/quickstart (or $1).
set -euo pipefail
cd "$(dirname "$0")/.."
workdir="${1:-runs/quickstart}"
. launch/setup.sh ""  # without an argument it would see those of this script
.venv/bin/mmjax train --config configs/quickstart.py --workdir "$workdir"
.venv/bin/mmjax eval --workdir "$workdir"
