# shellcheck shell=bash
# What the example clients in docs/clients need: node's modules beside them, and a virtual environment of Python.

# Not the tools' environment: what the example needs is what its own list names.
CARREL_CLIENTS_VENV=$CARREL_CACHE_DIR/clients-venv

# need_clients DIRECTORY
need_clients() {
  need_npm_modules "$1/node"
  if cmp -s "$1/python/requirements.txt" "$CARREL_CLIENTS_VENV/installed.txt" && "$CARREL_CLIENTS_VENV/bin/python" -c ''; then return 0; fi
  need_python
  with_progress "Python packages of the example client" "$CARREL_CACHE_DIR/log/pip-clients.log" fill_clients_venv "$1/python/requirements.txt"
}

# From nothing: what an earlier list installed must not hide that the present one lacks it.
fill_clients_venv() {
  python3 -m venv --clear "$CARREL_CLIENTS_VENV"
  "$CARREL_CLIENTS_VENV/bin/pip" install -q --disable-pip-version-check -r "$1"
  cp "$1" "$CARREL_CLIENTS_VENV/installed.txt"
}
