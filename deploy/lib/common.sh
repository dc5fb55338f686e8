# shellcheck shell=bash
# Sourced by deploy/quickstart and integration-tests/run: talking to the person, root rights, waiting.
# Every line a person reads goes through say, done_in or fail, so both commands look and fail alike.

LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # for those who source this
REPOSITORY=$(cd "$LIB/../.." && pwd)

# cloud-init runs scripts without it.
export HOME=${HOME:-$(getent passwd "$EUID" | cut -d: -f6)}

# The default must lie outside the repository: a `git clean` or a fresh clone should not cost the images and tools again.
# Under sudo it is not root's own: the person who called wants to use grpcurl from there.
if ((EUID == 0)) && [[ -n ${SUDO_USER:-} && ${SUDO_USER:-} != root ]]; then
  export CARREL_CACHE_DIR=${CARREL_CACHE_DIR:-/var/cache/carrel}
else
  export CARREL_CACHE_DIR=${CARREL_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/carrel}
fi

now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }

# human_ms MILLISECONDS: "0.3 s", "42.0 s", "3 m 05 s"
human_ms() {
  if (($1 < 60000)); then
    printf '%d.%d s' $(($1 / 1000)) $(($1 % 1000 / 100))
  else
    printf '%d m %02d s' $(($1 / 60000)) $(($1 / 1000 % 60))
  fi
}

# aligned with the texts of done_in
say() { printf '%13s%s\n' '' "$*"; }

# done_in START_MS TEXT: one line with how long it took, the time first since texts differ in length
done_in() {
  local start=$1
  shift
  printf '%11s  %s\n' "$(human_ms $(($(now_ms) - start)))" "$*"
}

phase() { printf '\n== %s\n' "$*"; }

# fail WHAT [NEXT…]: what failed, then what to do about it, one line each
fail() {
  printf '\nFAILED: %s\n' "$1" >&2
  shift
  local line
  for line in "$@"; do printf '        %s\n' "$line" >&2; done
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND…: directly for root, else through sudo
as_root() {
  if ((EUID == 0)); then
    "$@"
  elif have sudo; then
    sudo -- "$@"
  else
    fail "this needs root: $*" "Run it as root, or install sudo."
  fi
}

# become_root SCRIPT ARGUMENT…: for the two commands, which set up a machine and run an agent that gives directories to students. Not root:
# the script again, through sudo, with the settings of ours that were in the environment.
become_root() {
  local keep
  if ((EUID == 0)); then return 0; fi
  have sudo || fail "this needs root" "Run it as root, or install sudo."
  say "needs root: going on through sudo" >&2 # on the side: what `env` prints is read by a shell
  keep=$(compgen -e | grep -E '^(CARREL_|WORKSPACE_BASE_PATH|DOCKER_HOST|CARGO_|RUST|CI$|https?_proxy|SSL_CERT)' | paste -sd,)
  exec sudo ${keep:+--preserve-env="$keep"} -- "$@"
}

# Under sudo the checkout belongs to somebody else: what root builds must not lie in their folder.
keep_out_of_callers_checkout() {
  if ((EUID == 0)) && [[ $(stat -c %u "$REPOSITORY") != 0 ]]; then
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CARREL_CACHE_DIR/target}
  fi
}

# with_progress TEXT LOG COMMAND…: runs a long command with its output in LOG and a line every 15 s, so that a person sees it live.
# The command is a job of its own: errexit is on in it even where the caller is part of a condition, and Ctrl-C ends all of it.
with_progress() {
  local text=$1 log=$2 start pid rc=0 next=15
  shift 2
  start=$(now_ms)
  mkdir -p "$(dirname "$log")"
  set -m
  (
    set -e
    "$@"
  ) >"$log" 2>&1 </dev/null &
  pid=$!
  set +m
  # shellcheck disable=SC2064 # this pid, not a later one
  trap "kill -TERM -- -$pid 2>/dev/null; exit 130" INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    if (($(now_ms) - start >= next * 1000)); then
      printf '%11s… %s\n' "$(human_ms $(($(now_ms) - start)))" "$text"
      next=$((next + 15))
    fi
  done
  trap - INT TERM
  wait "$pid" || rc=$?
  if ((rc != 0)); then
    printf '\n   last lines of %s:\n' "$log" >&2
    tail -n "${log_lines:-25}" "$log" | sed 's/^/   | /' >&2
    fail "$text (exit status $rc)" "The whole output: $log"
  fi
  done_in "$start" "$text"
}

# wait_until SECONDS COMMAND…: true as soon as the command is, false after SECONDS
wait_until() {
  local deadline=$(($(now_ms) + $1 * 1000))
  shift
  until "$@"; do
    (($(now_ms) < deadline)) || return 1
    sleep 0.1
  done
}

# start_of PID: the kernel's start tick of a process. A pid comes round again, pid and start tick together never do.
start_of() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) } # the command name may hold blanks and brackets
  # a zombie is dead: where process 1 reaps nobody (some containers), it stays for ever
  awk '$1 != "Z" {print $20}' <<<"$stat"
}

# record_process FILE PID and is_recorded_alive FILE: a pid file that cannot point at somebody else's process
record_process() { printf '%s %s\n' "$2" "$(start_of "$2")" >"$1"; }

is_recorded_alive() {
  local pid start
  [[ -r $1 ]] && read -r pid start _ <"$1" && [[ -n $start && $(start_of "$pid") == "$start" ]]
}

# stop_recorded FILE SECONDS: TERM, then KILL after SECONDS; quiet when it is gone already
stop_recorded() {
  local pid
  if is_recorded_alive "$1"; then
    read -r pid _ <"$1"
    as_root kill -TERM "$pid" 2>/dev/null || true
    wait_until "$2" is_recorded_gone "$1" || as_root kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$1" 2>/dev/null || as_root rm -f "$1"
}

is_recorded_gone() { ! is_recorded_alive "$1"; }

has_systemd() { [[ -d /run/systemd/system ]]; }

# hash_of PATH…: one digest of the contents of files and folders, and of their names without the place where they lie
hash_of() { find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sed 's| .*/| |' | sha256sum | cut -c1-16; }
