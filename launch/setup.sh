# Sourced by the other scripts: makes .venv with the pinned versions, or reuses it when it is up to date. Usage: . launch/setup.sh [extras]
extras="${1:-}"
PYTHON="${PYTHON:-python3}"
want="$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)${extras}"
"$PYTHON" - <<'CHECK' || exit 2
import sys
if not (3, 11) <= sys.version_info[:2] < (3, 14):
    sys.exit(f"Python {sys.version.split()[0]} found, 3.11 to 3.13 needed. Set PYTHON=/path/to/python3.")
CHECK
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/mmjax-setup 2>/dev/null)" != "$want" ]; then
  echo "setting up .venv (packages are fetched once)"
  "$PYTHON" -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extras:+[$extras]}" 2>/tmp/mmjax-pip.$$ ||
    { cat /tmp/mmjax-pip.$$ >&2; exit 2; }
  rm -f /tmp/mmjax-pip.$$
  echo "$want" > .venv/mmjax-setup
fi
