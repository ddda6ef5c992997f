#!/usr/bin/env bash
# Installs the test extras into .venv and runs all tests with coverage.
# Further arguments go to pytest, e.g. tests/test_losses.py -x.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
install "[test]"
if [ $# -gt 0 ]; then
  exec .venv/bin/python -m pytest "$@"
fi
exec .venv/bin/python -m pytest -n 2 --dist worksteal --cov=boxseg_jax --cov-report=term --cov-fail-under=90
