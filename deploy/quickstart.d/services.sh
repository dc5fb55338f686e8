# shellcheck shell=bash
# The programs of Carrel as processes: start, stop, are they there. Each has a pid file and a log in the data directory.

database=$CARREL_DATA_DIR/postgres

pid_file() { echo "$CARREL_DATA_DIR/$1.pid"; }
log_file() { echo "$CARREL_DATA_DIR/$1.log"; }

# start_service NAME PROGRAM ARGUMENT…: in a session of its own, so that neither Ctrl-C nor a closed terminal ends it
start_service() {
  local name=$1 raw pid
  shift
  raw=$(pid_file "$name").new
  rm -f "$raw"
  printf -- '-- %s: %s %s\n' "$(date -Is)" "$(basename "$1")" "${*:2}" >>"$(log_file "$name")"
  # shellcheck disable=SC2016 # the inner shell expands its own arguments
  (cd / && setsid --fork bash -c 'echo $$ >"$1"; shift; exec "$@"' carrel "$raw" "$@" >>"$(log_file "$name")" 2>&1 </dev/null)
  wait_until 5 test -s "$raw" || return 1
  pid=$(<"$raw")
  record_process "$(pid_file "$name")" "$pid"
  rm -f "$raw"
}

# 20 s: longer than the order in which the programs shut down may take
stop_service() {
  is_recorded_alive "$(pid_file "$1")" || return 0
  stop_recorded "$(pid_file "$1")" 20
  say "$1 stopped"
}

is_up() { is_recorded_alive "$(pid_file "$1")"; }

program() {
  local target=${CARGO_TARGET_DIR:-target}
  (cd "$REPOSITORY" && realpath "$target/debug/$1")
}

# migrate_database: makes it the first time
migrate_database() {
  local url bin
  bin=$(postgres_bin "$database")
  url=$(postgres_url "$database" postgres)
  if [[ -z $("$bin/psql" -qAt "$url" -c "SELECT 1 FROM pg_database WHERE datname = 'carrel'") ]]; then
    "$bin/createdb" --maintenance-db="$url" carrel || return 1
  fi
  CARREL_DATABASE_URL=$(postgres_url "$database" carrel) "$(program control-plane)" migrate >>"$(log_file control-plane)" 2>&1
}

# start_control_plane [FLAG…]
start_control_plane() {
  CARREL_DATABASE_URL=$(postgres_url "$database" carrel) CARREL_DEV=true start_service control-plane "$(program control-plane)" serve "$@" || return 1
  wait_until 20 answers_or_dead control-plane "http://$CARREL_LISTEN/readyz"
  answers "http://$CARREL_LISTEN/readyz"
}

# start_agent [FLAG…]
start_agent() {
  install -d -m 711 "$WORKSPACE_BASE_PATH" || return 1
  install -d -m 700 "$CARREL_DATA_DIR/agent" || return 1
  CARREL_DEV=true CARREL_STORAGE=${CARREL_STORAGE:-directory} CARREL_STATE_DIR=$CARREL_DATA_DIR/agent \
    CARREL_CONTROL_PLANE=http://$CARREL_AGENT_LISTEN start_service node-agent "$(program node-agent)" run "$@" || return 1
  wait_until 20 answers_or_dead node-agent "http://$CARREL_METRICS_LISTEN/healthz"
  answers "http://$CARREL_METRICS_LISTEN/healthz" && mark_share
}

# mark_share: as an operator does once for each share. The agent of the first host knows whose it is once it has enrolled; where the mark is
# there already, this says so and changes nothing.
mark_share() {
  wait_until 20 test -s "$CARREL_DATA_DIR/agent/identity.json" || return 1
  CARREL_STORAGE=${CARREL_STORAGE:-directory} CARREL_STATE_DIR=$CARREL_DATA_DIR/agent \
    "$(program node-agent)" mark-share >>"$(log_file node-agent)" 2>&1
}

# A process of its own, which goes on through everything that becomes of the agent
start_fence() {
  CARREL_STATE_DIR=$CARREL_DATA_DIR/agent start_service node-fence "$(program node-agent)" fence || return 1
  wait_until 5 test -e "$CARREL_DATA_DIR/agent/fence/lock"
  is_up node-fence
}

answers() { curl -sf -m 2 -o /dev/null "$1"; }
answers_or_dead() { answers "$2" || ! is_up "$1"; }

# Before anything is installed, built or started: a port that somebody else has would only show minutes later.
check_ports() {
  local setting address
  for setting in CARREL_LISTEN:control-plane CARREL_AGENT_LISTEN:control-plane CARREL_METRICS_LISTEN:node-agent; do
    address=${setting%:*}
    address=${!address}
    [[ $address =~ ^(.+):([0-9]+)$ ]] || fail "${setting%:*}=$address is not of the form 127.0.0.1:7300"
    is_listening "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" || continue
    # shellcheck disable=SC2154 # set by settings.sh
    is_up "${setting#*:}" && grep -qx "${setting%:*}=$address" "$remembered" && continue
    fail "somebody listens on $address already, which ${setting%:*} is set to$(holder_of "${BASH_REMATCH[2]}")" \
      "Another Carrel? Then this one needs ports and a directory of its own, such as:" \
      "CARREL_DATA_DIR=/var/lib/carrel-two WORKSPACE_BASE_PATH=./two CARREL_LISTEN=127.0.0.1:7310 \\" \
      "  CARREL_AGENT_LISTEN=127.0.0.1:7311 CARREL_METRICS_LISTEN=127.0.0.1:7312 deploy/quickstart"
  done
}

is_listening() { (exec 3<>"/dev/tcp/${1//[\[\]]/}/$2") 2>/dev/null; }

holder_of() {
  local who
  who=$(ss -Hltnp "sport = :$1" 2>/dev/null | grep -o 'users:.*' | head -n 1) || true
  echo "${who:+ ($who)}"
}

# show_logs: the end of the programs' logs, for a failed step
show_logs() {
  local name
  for name in control-plane node-agent node-fence; do
    [[ -s $(log_file "$name") ]] || continue
    printf '\n   last lines of %s:\n' "$(log_file "$name")" >&2
    tail -n 15 "$(log_file "$name")" | cut -c1-400 | sed 's/^/   | /' >&2
  done
}

# our_containers: ids of the containers of this Carrel; empty before the agent has ever enrolled
our_containers() {
  local cluster
  cluster=$(our_cluster) && docker ps -aq --filter "label=carrel.cluster=$cluster"
}

our_cluster() { sed -n 's/.*"cluster" *: *"\([^"]*\)".*/\1/p' "$CARREL_DATA_DIR/agent/identity.json" 2>/dev/null | grep .; }

remove_containers_and_network() {
  local containers networks cluster
  docker_answers || return 0
  cluster=$(our_cluster) || return 0
  mapfile -t containers < <(our_containers)
  if ((${#containers[@]})); then
    docker rm -f "${containers[@]}" >/dev/null
    say "${#containers[@]} containers removed"
  fi
  mapfile -t networks < <(docker network ls -q --filter "label=carrel.cluster=$cluster")
  if ((${#networks[@]})); then docker network rm "${networks[@]}" >/dev/null; fi
}
