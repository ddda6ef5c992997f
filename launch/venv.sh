# Sourced by the other scripts: makes .venv with the fittest Python that is found
# (jax for 3.12 and newer is up to 1.6 times faster on CPU than the last one for 3.11)
# and installs the package into it. PYTHON=/path/to/python chooses another.

fits() {  # is it a Python 3.11 to 3.13 that can make virtual environments?
  "$1" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" && echo "$PYTHON" && return
    echo "PYTHON=$PYTHON is no Python 3.11, 3.12 or 3.13." >&2
    return 1
  fi
  for candidate in python3.12 python3.13 "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[23].*/bin/python3 \
    python3.11 python3 python; do
    fits "$candidate" && echo "$candidate" && return
  done
  echo "No Python 3.11, 3.12 or 3.13 was found; install one or set PYTHON." >&2
  return 1
}

make_venv() {  # Debian's python3 has pip but no ensurepip: then that pip fills the venv
  local python
  python=$(find_python) || exit 1
  "$python" -m venv --clear .venv 2>/dev/null && return
  "$python" -m venv --clear --without-pip .venv
  "$python" -m pip --python .venv/bin/python install --quiet pip
}

install() {  # install EXTRAS: the package with its extras, once per state of pyproject.toml
  if ! fits .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    make_venv
  fi
  local stamp=".venv/installed$1" wanted
  wanted=$(cksum < pyproject.toml)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing boxseg_jax$1 into .venv ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".$1"
    echo "$wanted" > "$stamp"
  fi
}
