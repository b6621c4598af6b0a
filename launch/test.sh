#!/usr/bin/env bash
# Sets up .venv and passes the tests: format, lint, then pytest (slow tests included). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 15 "$@"
