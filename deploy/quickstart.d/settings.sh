# shellcheck shell=bash
# Where this Carrel lives and listens: from the environment, else as the last `up` in this data directory had it, else the defaults.

# Not in the repository: Postgres runs as a user of its own, who may not enter a private home. Not in /tmp: a reboot must not cost the database.
export CARREL_DATA_DIR=${CARREL_DATA_DIR:-/var/lib/carrel-quickstart}
CARREL_DATA_DIR=$(realpath -m "$CARREL_DATA_DIR")

remembered=$CARREL_DATA_DIR/settings
settings=(CARREL_LISTEN CARREL_AGENT_LISTEN CARREL_METRICS_LISTEN WORKSPACE_BASE_PATH CARREL_WORKSPACE_IMAGE DOCKER_HOST)

load_settings() {
  local name value
  if [[ -r $remembered ]]; then
    while IFS='=' read -r name value; do
      [[ -n ${!name:-} ]] || export "$name=$value"
    done <"$remembered"
  fi
  export CARREL_LISTEN=${CARREL_LISTEN:-127.0.0.1:7300}
  export CARREL_AGENT_LISTEN=${CARREL_AGENT_LISTEN:-127.0.0.1:7301}
  export CARREL_METRICS_LISTEN=${CARREL_METRICS_LISTEN:-127.0.0.1:7302}
  export WORKSPACE_BASE_PATH=${WORKSPACE_BASE_PATH:-$REPOSITORY/workspace-data}
  WORKSPACE_BASE_PATH=$(realpath -m "$WORKSPACE_BASE_PATH")
  export CARREL_WORKSPACE_IMAGE=${CARREL_WORKSPACE_IMAGE:-carrel/workspace:dev}
}

remember_settings() {
  local name
  as_root install -d -m 755 "$CARREL_DATA_DIR"
  for name in "${settings[@]}"; do printf '%s=%s\n' "$name" "${!name}"; done >"$remembered"
}

print_env() {
  # Tokens and a certificate authority come with TLS; until then everything is plaintext on loopback, and these are empty.
  printf 'export %s=%q\n' \
    CARREL_ENDPOINT "$CARREL_LISTEN" CARREL_CA '' CARREL_LMS_TOKEN '' CARREL_OPERATOR_TOKEN '' \
    CARREL_DATA_DIR "$CARREL_DATA_DIR" WORKSPACE_BASE_PATH "$WORKSPACE_BASE_PATH" \
    CARREL_WORKSPACE_IMAGE "$CARREL_WORKSPACE_IMAGE" DOCKER_HOST "$DOCKER_HOST"
  # grpcurl, where it is only among our own tools
  # shellcheck disable=SC2016,SC2154 # the reading shell expands PATH; carrel_tools is from toolchain.sh
  if [[ $(command -v grpcurl) == "$carrel_tools"/* ]]; then printf 'export PATH="$PATH":%q\n' "$carrel_tools/bin"; fi
}
