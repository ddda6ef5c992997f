#!/usr/bin/env bash
# The fault drills of tests/faults/, with signals at many random moments: too long for every day.
#   BOXSEG_KILLS  how many signals of each kind (25)
#   BOXSEG_SEED   draws the moments (0)
# Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
BOXSEG_NIGHTLY=1 exec bash launch/test.sh -rA -s tests/faults "$@"
