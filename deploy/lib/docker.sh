# shellcheck shell=bash
# A Docker daemon that answers: the machine's own where there is one, else Debian's, started by systemd or, where none runs, by us.

# What we started is written down here, with the name of the command that did (docker_starter, set by the command): neither ever stops what
# the other, or anybody else, has started.
docker_starter=${docker_starter:-carrel}
docker_run_dir=/run/carrel
docker_pid_file=$docker_run_dir/dockerd.carrel
docker_log=/var/log/carrel-dockerd.log

export DOCKER_HOST=${DOCKER_HOST:-unix:///var/run/docker.sock}

# A daemon that hangs must not hang us. A person outside the group `docker` goes through sudo.
docker_answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

need_docker() {
  have docker && docker_answers && return 0
  case $DOCKER_HOST in
    unix:///var/run/docker.sock | unix:///run/docker.sock) ;;
    *) fail "no Docker daemon answers on DOCKER_HOST=$DOCKER_HOST" "Start it, or unset DOCKER_HOST and let this script provide one." ;;
  esac
  if [[ -S /var/run/docker.sock && ! -w /var/run/docker.sock ]]; then
    fail "you ($(id -un)) may not talk to Docker's socket" "Run this as root, or: sudo usermod -aG docker $(id -un), and log in again."
  fi
  if ! have dockerd || ! have docker; then
    # Without systemd Debian would start it by an init script, out of our sight. The client is a package of its own since Debian 13.
    if has_systemd; then need_packages docker.io iptables; else without_services need_packages docker.io iptables; fi
    have docker || need_packages docker-cli
  fi
  if has_systemd; then
    as_root systemctl start docker || fail "systemd could not start Docker" "See: journalctl -u docker -n 50"
  else
    start_dockerd
  fi
}

# Containers ask for Docker's own init (HostConfig.Init), which is a program of its own that some packagings leave out.
need_docker_init() {
  have docker-init || have tini || [[ -x /usr/libexec/docker/docker-init || -x /usr/lib/docker/docker-init ]] || need_packages tini
  have docker-init && return 0
  [[ -x /usr/libexec/docker/docker-init || -x /usr/lib/docker/docker-init ]] && return 0
  have tini || return 0 # a daemon on another host brings its own
  as_root ln -sf "$(command -v tini)" /usr/local/bin/docker-init
}

start_dockerd() {
  local start
  start=$(now_ms)
  mountpoint -q /sys/fs/cgroup || fail "no cgroups are mounted on /sys/fs/cgroup, and dockerd needs them" \
    "In a container: start that container with access to the host's cgroups. On a host: apt-get install cgroupfs-mount"
  as_root mkdir -p "$docker_run_dir"
  as_root rm -f "$docker_run_dir/dockerd.pid" # its coming back tells that the new one has begun
  # A daemon that was killed leaves its pid file, and a new process may bear that number: dockerd would refuse to start.
  if [[ -r /var/run/docker.pid ]] && [[ $(cat "/proc/$(</var/run/docker.pid)/comm" 2>/dev/null) != dockerd ]]; then
    as_root rm -f /var/run/docker.pid
  fi
  # live-restore: students' containers outlive a restart of the daemon. setsid: Ctrl-C here must not reach it.
  # shellcheck disable=SC2016 # the inner shell expands its own arguments
  as_root setsid --fork bash -c 'echo $$ >"$1/dockerd.pid"; exec dockerd --live-restore --host unix:///var/run/docker.sock >>"$2" 2>&1 </dev/null' \
    carrel "$docker_run_dir" "$docker_log"
  wait_until 5 test -s "$docker_run_dir/dockerd.pid" || true
  local pid
  pid=$(<"$docker_run_dir/dockerd.pid")
  printf '%s %s %s\n' "$pid" "$(start_of "$pid")" "$docker_starter" | as_root tee "$docker_pid_file" >/dev/null
  wait_until 60 docker_answers_or_dead
  docker_answers || {
    as_root tail -n 15 "$docker_log" | sed 's/^/   | /' >&2
    fail "dockerd did not come up" "The whole output: $docker_log"
  }
  done_in "$start" "dockerd started (log: $docker_log)"
}

docker_answers_or_dead() { docker_answers || is_recorded_gone "$docker_pid_file"; }

# stop_our_dockerd: only the one we started, and only when nobody's container runs on it
stop_our_dockerd() {
  local starter
  is_recorded_alive "$docker_pid_file" || return 0
  read -r _ _ starter <"$docker_pid_file"
  [[ $starter == "$docker_starter" ]] || return 0
  if [[ -n $(docker ps -q 2>/dev/null) ]]; then
    say "dockerd stays up: containers still run on it (docker ps)"
    return 0
  fi
  stop_recorded "$docker_pid_file" 20
  say "dockerd stopped"
}

# drop_replaced_images LABEL: images of ours that a newer one took the tag from; those that a container still uses stay
drop_replaced_images() { docker image prune -f --filter "label=$1" >/dev/null 2>&1 || true; }
