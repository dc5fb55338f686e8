"""Starts a student's desk, watches it come up, opens the editor, reports activity: python start_and_watch.py STUDENT [COURSE]"""

import os
import pathlib
import sys
import time
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# grpcio-tools compiles the .proto files while it imports them, and finds them as Python finds modules.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "proto"))
pb, services = grpc.protos_and_services("carrel/v1/workspace_service.proto")
workspaces = grpc.protos("carrel/v1/workspace.proto")


def read_error(error):
    """Reason, metadata, bad fields, and the seconds after which trying again helps (None: it does not)."""
    status = rpc_status.from_call(error)
    found = {"ErrorInfo": error_details_pb2.ErrorInfo(), "RetryInfo": None, "BadRequest": error_details_pb2.BadRequest()}
    for packed in status.details if status else ():
        name = packed.TypeName().rpartition(".")[2]
        if name in found:
            found[name] = getattr(error_details_pb2, name)()
            packed.Unpack(found[name])
    # The server was not reached, or not in time, so it could not say when to try again.
    delay = 1.0 if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) else None
    if found["RetryInfo"]:
        delay = found["RetryInfo"].retry_delay.ToTimedelta().total_seconds()
    return found["ErrorInfo"], found["BadRequest"].field_violations, delay


def retrying(attempt):
    """Tries again where that helps, for two minutes. What is wrong with the request itself comes back at once."""
    end = time.monotonic() + 120
    while True:
        try:
            return attempt()
        except grpc.RpcError as error:
            info, _, delay = read_error(error)
            if delay is None or time.monotonic() + delay > end:
                raise
            print(f"{error.code().name} {info.reason or '-'}: {error.details()}; again in {delay:g} s", flush=True)
            time.sleep(delay)


def main(student, course=""):
    client = services.WorkspaceServiceStub(grpc.insecure_channel(os.environ.get("CARREL_ENDPOINT") or "127.0.0.1:7300"))
    state, stage = workspaces.Workspace.State, workspaces.Progress.Stage
    name, resume_token = f"workspaces/{student}", ""

    def watch_until_running():
        nonlocal resume_token
        stream = client.WatchWorkspaces(pb.WatchWorkspacesRequest(names=[name], resume_token=resume_token))
        for change in (message.change for message in stream):
            resume_token = change.resume_token or resume_token
            if not change.HasField("workspace"):
                continue  # SYNCED: the snapshot is complete
            desk = change.workspace
            progress = f"{stage.Name(desk.progress.stage)} {desk.progress.percent} %" if desk.HasField("progress") else ""
            print(state.Name(desk.state), progress or desk.status_message, flush=True)
            if desk.state == state.STATE_RUNNING:
                return stream.cancel()
            if not desk.reconciling or desk.state == state.STATE_FAILED:
                sys.exit(f"it will not run: {workspaces.Workspace.StatusReason.Name(desk.status_reason)}")

    # One request_id for all tries: a start whose answer was lost is not done twice. Every call has a deadline: gRPC sets none by itself.
    start = pb.StartWorkspaceRequest(student_id=student, course_id=course, request_id=str(uuid.uuid4()))
    desk = retrying(lambda: client.StartWorkspace(start, timeout=10)).workspace
    print(f"asked for generation {desk.generation} of {desk.name}")
    retrying(watch_until_running)
    print("editor:", retrying(lambda: client.CreateAccess(pb.CreateAccessRequest(name=name), timeout=10)).url)
    heartbeat = pb.RecordHeartbeatRequest(name=name, signal=workspaces.SIGNAL_LMS_INPUT)
    print("deadline:", retrying(lambda: client.RecordHeartbeat(heartbeat, timeout=10)).idle.deadline_time.ToJsonString())


if len(sys.argv) < 2:
    sys.exit("usage: python start_and_watch.py STUDENT [COURSE]")
try:
    main(*sys.argv[1:3])
except grpc.RpcError as error:
    info, violations, _ = read_error(error)
    lines = [f"{error.code().name} {info.reason or '-'}: {error.details()}"]
    lines += [f"  {violation.field}: {violation.description}" for violation in violations]
    lines += [f"  {key} = {value}" for key, value in info.metadata.items()]
    sys.exit("\n".join(lines))
