# shellcheck shell=bash disable=SC2034 # the settings are used by quickstart
# The main job, with timers short enough to watch: a desk is started, used, warned, stopped when idle, and started again with its files.

student=ada
desk=workspaces/$student
demo_file=hello-from-quickstart.txt
# 8 s: the editor is up in about two, and a person can follow what happens. Normal is 15 min, with a warning 2 min before.
short_timers=(--idle-timeout 8s --warning-lead 3s --idle-sweep 1s)
# How often the agent looks for containers that should not be there. Normal is 30 s.
short_reconcile=(--reconcile-interval 2s)

# step TEXT FUNCTION: a line with how long it took. The function returns false when it failed, and may say something in `told`.
step() {
  local text=$1 start
  start=$(now_ms)
  told=''
  if ! "${@:2}"; then
    show_logs
    fail "$text${told:+: $told}" "All of the logs: $CARREL_DATA_DIR/*.log" "What runs is left as it is; deploy/quickstart down stops it."
  fi
  done_in "$start" "$text${told:+ ($told)}"
}

demonstrate() {
  step "desk of an earlier run stopped" stop_earlier_desk
  before=$(last_event_position)
  step "StartWorkspace for $student, until RUNNING" start_desk
  step "the editor answers in HTTP" see_editor
  step "a file written in the container, as the student" write_file
  step "RecordHeartbeat moves the deadline" heartbeat
  step "nobody works: the idle warning" wait_for_warning
  step "still nobody: the idle stop" wait_for_idle_stop
  step "StartWorkspace again, until RUNNING" start_desk
  step "the file is still there" find_file
  step "a container of an older generation is cleaned up" clean_up_orphan
}

stop_earlier_desk() {
  case $(state_of "$student") in
    '' | STATE_STOPPED | STATE_FAILED)
      told='there was none'
      return 0
      ;;
  esac
  call WorkspaceService/StopWorkspace "{\"name\":\"$desk\",\"reason\":\"quickstart\"}" >/dev/null || return 1
  wait_until 60 is_state "$student" STOPPED
}

start_desk() {
  # A node that has just been marked is looked at again within 2 s.
  wait_until 20 ask_to_start || return 1
  if ! wait_until 90 is_state "$student" RUNNING; then
    told=$(call WorkspaceService/GetWorkspace "{\"name\":\"$desk\"}" | tr -d '\n ')
    return 1
  fi
  desk_container=$(docker ps -q --no-trunc --filter "label=carrel.student=$student" --filter "label=carrel.cluster=$(our_cluster)")
  [[ -n $desk_container ]]
}

ask_to_start() { call WorkspaceService/StartWorkspace "{\"student_id\":\"$student\",\"course_id\":\"cs101\"}" >/dev/null; }

see_editor() {
  local url
  url=$(editor_url "$student") && [[ -n $url ]] || return 1
  told=$url
  # Not /healthz, which was asked before RUNNING: the page that loads the editor.
  curl -sfL -m 10 "$url" | grep -q workbench
}

write_file() {
  docker exec --user 1000:1000 "$desk_container" sh -c "date -Is >/home/coder/project/$demo_file" || return 1
  told=$WORKSPACE_BASE_PATH/$student/$demo_file
  [[ -s $told ]]
}

heartbeat() {
  told=$(call WorkspaceService/RecordHeartbeat "{\"name\":\"$desk\",\"signal\":\"SIGNAL_LMS_INPUT\"}" | field idle.remaining) && [[ -n $told ]] || return 1
  told="$told left"
}

wait_for_warning() { wait_until 15 has_event "$student" workspace.warning "${before:-0}"; }

wait_for_idle_stop() {
  wait_until 30 has_event "$student" workspace.stopped "${before:-0}" || return 1
  told="reason $(event_of "$student" workspace.stopped "${before:-0}" reason)"
  [[ $told == *IDLE ]] && is_state "$student" STOPPED
}

find_file() { docker exec --user 1000:1000 "$desk_container" test -s "/home/coder/project/$demo_file"; }

# The labels of the real container, but of the generation before: as if a stop had never come through. --init, since a
# lone sleep as process 1 hears no SIGTERM.
clean_up_orphan() {
  local labels=() name value generation orphan
  for name in cluster incarnation node workspace student spec generation; do
    value=$(docker inspect --format "{{index .Config.Labels \"carrel.$name\"}}" "$desk_container") || return 1
    if [[ $name == generation ]]; then
      generation=$value
      value=$((value - 1))
    fi
    labels+=(--label "carrel.$name=$value")
  done
  orphan=$(docker run -d --init --network none "${labels[@]}" --entrypoint sleep "$CARREL_WORKSPACE_IMAGE" 3600) || return 1
  if ! wait_until 70 is_gone_while_working "$orphan"; then
    told='it was still there after 70 s'
    docker rm -f "$orphan" >/dev/null
    return 1
  fi
  told="generation $((generation - 1)); the desk has $generation and runs on"
  is_state "$student" RUNNING
}

# The student keeps working meanwhile, else the desk would be stopped for idleness.
is_gone_while_working() {
  heartbeat && ! docker inspect "$1" >/dev/null 2>&1
}
