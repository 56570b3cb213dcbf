"""Cloud Run by Google's own Python client: every method that is served, over one transport.

  run_v2.py TRANSPORT WAY IMAGE REGION

TRANSPORT is rest or grpc. WAY is how the server is reached: `proxy` (the environment `tidegate env` prints), or an
endpoint for `client_options`. The same assertions hold for all of them; the first that does not ends the program.
"""

import os
import sys

import google.api_core.exceptions as refused
from google.api_core.client_options import ClientOptions
from google.cloud import run_v2
from google.iam.v1 import iam_policy_pb2, options_pb2, policy_pb2
from google.longrunning import operations_pb2
from google.oauth2.credentials import Credentials
from google.protobuf import duration_pb2, field_mask_pb2

TRANSPORT, WAY, IMAGE, REGION = sys.argv[1:5]
PROJECT = os.environ["GOOGLE_CLOUD_PROJECT"]
PARENT = f"projects/{PROJECT}/locations/{REGION}"
CREDENTIALS = Credentials(os.environ["GOOGLE_OAUTH_ACCESS_TOKEN"])
OPTIONS = ClientOptions() if WAY == "proxy" else ClientOptions(api_endpoint=WAY)
NAME = f"{PARENT}/services/py"


def client(kind):
    return kind(transport=TRANSPORT, credentials=CREDENTIALS, client_options=OPTIONS)


services, revisions = client(run_v2.ServicesClient), client(run_v2.RevisionsClient)


def is_refused(kind, text, call):
    try:
        call()
    except kind as error:
        assert text in str(error), f"{text!r} is not in {error}"
        return error
    raise AssertionError(f"not refused as {kind.__name__}: {text}")


def declared(colour, **fields):
    container = run_v2.Container(image=IMAGE, env=[run_v2.EnvVar(name="COLOUR", value=colour)])
    template = run_v2.RevisionTemplate(
        containers=[container],
        timeout=duration_pb2.Duration(seconds=120),
        max_instance_request_concurrency=17,
        scaling=run_v2.RevisionScaling(max_instance_count=4),
    )
    return run_v2.Service(
        template=template, ingress=run_v2.IngressTraffic.INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER, **fields
    )


def create():
    # A dry run says what would be and leaves nothing behind.
    request = run_v2.CreateServiceRequest(
        parent=PARENT, service=declared("blue"), service_id="py", validate_only=True
    )
    judged = services.create_service(request).result(timeout=30)
    assert judged.template.timeout.seconds == 120, judged
    is_refused(refused.NotFound, "does not exist", lambda: services.get_service(name=NAME))

    request.validate_only = False
    operation = services.create_service(request)
    assert operation.operation.name.startswith(f"{PARENT}/operations/"), operation.operation
    made = operation.result(timeout=60)
    assert made.name == NAME and made.generation == made.observed_generation == 1, made
    assert made.ingress == run_v2.IngressTraffic.INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER
    ready = made.terminal_condition
    assert (ready.type_, ready.state) == ("Ready", run_v2.Condition.State.CONDITION_SUCCEEDED), ready
    assert {c.type_ for c in made.conditions} == {"ConfigurationsReady", "RoutesReady"}, made.conditions
    assert not made.reconciling and made.uri.startswith("https://py-") and made.uri in made.urls, made.uri
    assert made.template.max_instance_request_concurrency == 17
    assert [s.percent for s in made.traffic_statuses] == [100], made.traffic_statuses
    is_refused(refused.Conflict, "already exists", lambda: services.create_service(request))
    bad = run_v2.CreateServiceRequest(parent=PARENT, service=run_v2.Service(), service_id="bad")
    is_refused(refused.BadRequest, "template", lambda: services.create_service(bad))
    bad = run_v2.CreateServiceRequest(parent=PARENT, service=declared("blue"), service_id="No_Name")
    is_refused(refused.BadRequest, "metadata.name", lambda: services.create_service(bad))
    return made


def lists(made):
    request = run_v2.CreateServiceRequest(parent=PARENT, service=declared("red"), service_id="py-two")
    services.create_service(request).result(timeout=60)
    listed = services.list_services(run_v2.ListServicesRequest(parent=PARENT, page_size=1))
    assert [s.name.split("/")[-1] for s in listed] == ["py", "py-two"]
    everywhere = services.list_services(parent=f"projects/{PROJECT}/locations/-")
    assert made.name in [s.name for s in everywhere]
    services.delete_service(name=f"{PARENT}/services/py-two").result(timeout=60)


def update(made):
    # Only what the mask names becomes as it is declared.
    change = declared("green", name=NAME, labels={"team": "sea"}, description="not named by the mask")
    mask = field_mask_pb2.FieldMask(paths=["template.containers", "labels"])
    request = run_v2.UpdateServiceRequest(service=change, update_mask=mask)
    changed = services.update_service(request).result(timeout=60)
    assert changed.generation == 2 and changed.labels["team"] == "sea" and changed.description == "", changed
    assert changed.template.containers[0].env[0].value == "green"
    assert changed.latest_ready_revision != made.latest_ready_revision
    # Whoever still holds the first etag is told that somebody came in between.
    stale = run_v2.UpdateServiceRequest(service=declared("red", name=NAME, etag=made.etag))
    conflict = is_refused(refused.Conflict, "does not match the current etag", lambda: services.update_service(stale))
    assert isinstance(conflict, refused.Aborted) or TRANSPORT == "rest", conflict
    # A dry run of a change changes nothing.
    dry = run_v2.UpdateServiceRequest(service=declared("red", name=NAME), validate_only=True)
    assert services.update_service(dry).result(timeout=30).generation == 3
    assert services.get_service(name=NAME).etag == changed.etag
    # What is missing is made when that is allowed.
    missing = run_v2.UpdateServiceRequest(service=declared("red", name=f"{PARENT}/services/py-new"))
    is_refused(refused.NotFound, "does not exist", lambda: services.update_service(missing))
    missing.allow_missing = True
    assert services.update_service(missing).result(timeout=60).generation == 1
    services.delete_service(name=f"{PARENT}/services/py-new").result(timeout=60)
    return changed


def traffic(first, second):
    kind = run_v2.TrafficTargetAllocationType
    targets = [
        run_v2.TrafficTarget(type_=kind.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION, revision=first, percent=25),
        run_v2.TrafficTarget(type_=kind.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST, percent=75, tag="new"),
    ]
    request = run_v2.UpdateServiceRequest(
        service=run_v2.Service(name=NAME, traffic=targets), update_mask=field_mask_pb2.FieldMask(paths=["traffic"])
    )
    split = services.update_service(request).result(timeout=60)
    statuses = {s.revision: (s.percent, s.tag) for s in split.traffic_statuses}
    assert statuses == {first: (25, ""), second: (75, "new")}, statuses
    assert split.traffic_statuses[1].uri.startswith("https://new---py-"), split.traffic_statuses


def of_revisions(first, second):
    listed = list(revisions.list_revisions(parent=NAME))
    assert [r.name.split("/")[-1] for r in listed] == [second, first], listed
    shown = revisions.get_revision(name=f"{NAME}/revisions/{first}")
    assert shown.service == "py" and shown.max_instance_request_concurrency == 17, shown
    assert {c.type_ for c in shown.conditions} >= {"Ready", "ContainerHealthy", "ResourcesAvailable"}
    in_use = lambda: revisions.delete_revision(name=f"{NAME}/revisions/{first}")
    is_refused(refused.BadRequest, "cannot be deleted", in_use)
    latest = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST
    to_latest = run_v2.Service(name=NAME, traffic=[run_v2.TrafficTarget(type_=latest, percent=100)])
    mask = field_mask_pb2.FieldMask(paths=["traffic"])
    services.update_service(run_v2.UpdateServiceRequest(service=to_latest, update_mask=mask)).result(timeout=60)
    gone = revisions.delete_revision(name=f"{NAME}/revisions/{first}").result(timeout=60)
    assert gone.name.endswith(first), gone
    is_refused(refused.NotFound, "does not exist", lambda: revisions.get_revision(name=f"{NAME}/revisions/{first}"))


def policies():
    public = policy_pb2.Binding(role="roles/run.invoker", members=["allUsers"])
    asked = iam_policy_pb2.GetIamPolicyRequest(
        resource=NAME, options=options_pb2.GetPolicyOptions(requested_policy_version=3)
    )
    policy = services.get_iam_policy(asked)
    assert not policy.bindings and policy.etag, policy
    first_etag = policy.etag
    policy.bindings.append(public)
    kept = services.set_iam_policy(iam_policy_pb2.SetIamPolicyRequest(resource=NAME, policy=policy))
    assert kept.bindings[0].members == ["allUsers"] and kept.etag != first_etag, kept
    assert services.get_iam_policy(asked) == kept
    stale = policy_pb2.Policy(etag=first_etag)
    conflict = lambda: services.set_iam_policy(iam_policy_pb2.SetIamPolicyRequest(resource=NAME, policy=stale))
    is_refused(refused.Conflict, "concurrent policy changes", conflict)
    wanted = ["run.services.get", "run.routes.invoke"]
    held = services.test_iam_permissions(
        iam_policy_pb2.TestIamPermissionsRequest(resource=NAME, permissions=wanted)
    )
    assert sorted(held.permissions) == sorted(wanted), held


def operations():
    change = run_v2.Service(name=NAME, labels={"team": "shore"})
    mask = field_mask_pb2.FieldMask(paths=["labels"])
    begun = services.update_service(run_v2.UpdateServiceRequest(service=change, update_mask=mask)).operation
    waited = services.wait_operation(
        operations_pb2.WaitOperationRequest(name=begun.name, timeout=duration_pb2.Duration(seconds=30))
    )
    if isinstance(waited, bytes):
        # The package gives this one answer over gRPC as the bytes it came in.
        waited = operations_pb2.Operation.FromString(waited)
    assert waited.done and not waited.HasField("error"), waited
    known = services.list_operations(operations_pb2.ListOperationsRequest(name=PARENT))
    assert begun.name in [o.name for o in known.operations]
    services.delete_operation(operations_pb2.DeleteOperationRequest(name=begun.name))
    asked = lambda: services.get_operation(operations_pb2.GetOperationRequest(name=begun.name))
    is_refused(refused.NotFound, "not found", asked)


def failure():
    # An image nobody can pull: the operation fails and says why, and the service is there to be looked at.
    broken = run_v2.Service(template=run_v2.RevisionTemplate(containers=[run_v2.Container(image="127.0.0.1:9/no/no:1")]))
    request = run_v2.CreateServiceRequest(parent=PARENT, service=broken, service_id="py-broken")
    is_refused(refused.GoogleAPICallError, "not ready and cannot serve", lambda: services.create_service(request).result(timeout=60))
    shown = services.get_service(name=f"{PARENT}/services/py-broken")
    assert shown.terminal_condition.state == run_v2.Condition.State.CONDITION_FAILED, shown
    assert shown.terminal_condition.reason == run_v2.Condition.CommonReason.REVISION_FAILED, shown
    services.delete_service(name=shown.name).result(timeout=60)


def delete(etag):
    stale = run_v2.DeleteServiceRequest(name=NAME, etag=etag)
    is_refused(refused.Conflict, "does not match the current etag", lambda: services.delete_service(stale))
    request = run_v2.DeleteServiceRequest(name=NAME, validate_only=True)
    services.delete_service(request).result(timeout=30)
    current = services.get_service(name=NAME)
    gone = services.delete_service(run_v2.DeleteServiceRequest(name=NAME, etag=current.etag)).result(timeout=60)
    assert gone.name == NAME, gone
    is_refused(refused.NotFound, "does not exist", lambda: services.get_service(name=NAME))


def strangers():
    stranger = run_v2.ServicesClient(transport=TRANSPORT, credentials=Credentials("wrong"), client_options=OPTIONS)
    # A refused token is tried again with a refreshed one, which this credential has no means to get.
    is_refused(Exception, "", lambda: stranger.get_service(name=NAME))
    elsewhere = lambda: services.get_service(name=f"projects/{PROJECT}/locations/atlantis/services/x")
    is_refused(refused.Forbidden, "Location atlantis is not found", elsewhere)


def main():
    made = create()
    lists(made)
    changed = update(made)
    first, second = (s.latest_ready_revision.split("/")[-1] for s in (made, changed))
    traffic(first, second)
    of_revisions(first, second)
    policies()
    operations()
    failure()
    delete(made.etag)
    strangers()
    print(f"{TRANSPORT} by {WAY}: all methods answered")


if __name__ == "__main__":
    main()
