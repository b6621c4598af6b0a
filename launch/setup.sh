# Sourced by the other scripts: makes .venv with the pinned versions, or reuses it when it is up to date.
# Usage: . launch/setup.sh [EXTRAS]     A .venv that has more extras than asked for is up to date.
extras="${1:-}"
PYTHON="${PYTHON:-python3}"
pins="$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)"
stamp="$(cat .venv/mmjax-setup 2>/dev/null || true)"
"$PYTHON" - <<'CHECK' || exit 2
import sys
if not (3, 11) <= sys.version_info[:2] < (3, 14):
    sys.exit(f"Python {sys.version.split()[0]} found, 3.11 to 3.13 needed. Set PYTHON=/path/to/python3.")
CHECK
if [ ! -x .venv/bin/python ] || { [ "$stamp" != "$pins $extras" ] && { [ -n "$extras" ] || [ "${stamp%% *}" != "$pins" ]; }; }; then
  echo "setting up .venv (packages are fetched once)"
  "$PYTHON" -m venv .venv
  log="$(mktemp)"
  .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extras:+[$extras]}" 2>"$log" ||
    { cat "$log" >&2; exit 2; }
  rm -f "$log"
  echo "$pins $extras" > .venv/mmjax-setup
fi
