# shellcheck shell=bash
# Calls of the API, by grpcurl as a person would make them, and what to read from the answers.

call() { grpcurl -plaintext -max-time 10 -d "$2" "$CARREL_LISTEN" "carrel.v1.$1" 2>>"$CARREL_DATA_DIR/calls.log"; }

# from_json PROGRAM ARGUMENT…: reads the JSON on standard input in Python, as `answer`; {} where a call failed. Without jq, which a bare
# machine does not have; our tools bring a Python.
from_json() {
  local program=$1
  shift
  # shellcheck disable=SC2154 # set by toolchain.sh
  "$carrel_tools/bin/python" -c "import json, sys
answer = json.loads(sys.stdin.read() or '{}')
$program" "$@"
}

# field PATH: a value in the answer, such as workspace.idle.remaining; nothing where there is none
field() {
  from_json '
for key in sys.argv[1].split("."):
    answer = answer.get(key, "") if isinstance(answer, dict) else ""
print(answer)' "$1"
}

state_of() { call WorkspaceService/GetWorkspace "{\"name\":\"workspaces/$1\"}" | field workspace.state; }

# is_state STUDENT STATE: proto JSON leaves nothing out here, STATE_UNSPECIFIED does not occur
is_state() { [[ $(state_of "$1") == "STATE_$2" ]]; }

last_event_position() { call EventService/ListEvents '{"newest_first":true,"page_size":1}' | event_field '' position; }

# event_field TYPE FIELD [AFTER]: of the newest event of that type that came after a position
event_field() {
  from_json '
kind, name, after = sys.argv[1], sys.argv[2], int(sys.argv[3])
events = (e for e in answer.get("events", []) if e["type"].startswith(kind) and int(e["position"]) > after)
print(next(events, {}).get(name, ""))' "$1" "$2" "${3:-0}"
}

# event_of STUDENT TYPE AFTER FIELD
event_of() {
  call EventService/ListEvents "{\"newest_first\":true,\"page_size\":50,\"filter\":{\"workspace\":\"workspaces/$1\"}}" | event_field "$2" "$4" "$3"
}

has_event() { [[ -n $(event_of "$1" "$2" "$3" position) ]]; }

editor_url() { call WorkspaceService/CreateAccess "{\"name\":\"workspaces/$1\",\"purpose\":\"PURPOSE_EDITOR\"}" | field url; }

# desks_in_use: student and state of all desks that are not stopped, one a line
desks_in_use() {
  call WorkspaceService/ListWorkspaces '{"page_size":500}' | from_json '
for desk in answer.get("workspaces", []):
    if desk["state"] not in ("STATE_STOPPED", "STATE_FAILED"):
        print(desk["studentId"], desk["state"][6:])'
}
