#!/usr/bin/env python3
"""Writes `descriptors.binpb`: the messages that are spoken over gRPC, as protobuf describes them.

They are read from the PyPI packages google-cloud-run and google-cloud-logging, which carry the descriptors of
Google's protos. Only the messages that are served and what they are made of are kept; services, options and
comments are not.

  python3 -m venv V && V/bin/pip install google-cloud-run google-cloud-logging && V/bin/python descriptors.py
"""

from pathlib import Path

import google.cloud.location.locations_pb2
import google.iam.v1.iam_policy_pb2
import google.longrunning.operations_pb2
import google.protobuf.empty_pb2
import google.rpc.error_details_pb2
import google.rpc.status_pb2
from google.cloud import logging_v2, run_v2
from google.protobuf import descriptor_pb2, descriptor_pool

INTO = Path(__file__).resolve().parent / "descriptors.binpb"

# Messages of the methods that are served, and those that stand inside `Any`.
ROOTS = """
google.cloud.run.v2.CreateServiceRequest
google.cloud.run.v2.DeleteServiceRequest
google.cloud.run.v2.GetServiceRequest
google.cloud.run.v2.ListServicesRequest
google.cloud.run.v2.ListServicesResponse
google.cloud.run.v2.UpdateServiceRequest
google.cloud.run.v2.Service
google.cloud.run.v2.DeleteRevisionRequest
google.cloud.run.v2.GetRevisionRequest
google.cloud.run.v2.ListRevisionsRequest
google.cloud.run.v2.ListRevisionsResponse
google.cloud.run.v2.Revision
google.iam.v1.GetIamPolicyRequest
google.iam.v1.SetIamPolicyRequest
google.iam.v1.TestIamPermissionsRequest
google.iam.v1.TestIamPermissionsResponse
google.cloud.location.GetLocationRequest
google.cloud.location.ListLocationsRequest
google.cloud.location.ListLocationsResponse
google.longrunning.DeleteOperationRequest
google.longrunning.GetOperationRequest
google.longrunning.ListOperationsRequest
google.longrunning.ListOperationsResponse
google.longrunning.WaitOperationRequest
google.logging.v2.ListLogEntriesRequest
google.logging.v2.ListLogEntriesResponse
google.logging.v2.TailLogEntriesRequest
google.logging.v2.TailLogEntriesResponse
google.protobuf.Empty
google.rpc.BadRequest
google.rpc.ErrorInfo
google.rpc.Status
""".split()


def loaded_pool():
    """The pool, with every message of the two packages described in it."""
    for package in (run_v2, logging_v2):
        for kind in vars(package.types).values():
            if isinstance(kind, type) and hasattr(kind, "pb"):
                kind.pb(kind())
    return descriptor_pool.Default()


def needed(pool):
    """The top-level messages and enums the roots are made of, by file."""
    waiting = [pool.FindMessageTypeByName(name) for name in ROOTS]
    seen, by_file = set(), {}
    while waiting:
        kind = waiting.pop()
        while kind.containing_type is not None:
            kind = kind.containing_type
        if kind.full_name in seen:
            continue
        seen.add(kind.full_name)
        by_file.setdefault(kind.file.name, (kind.file, set()))[1].add(kind.name)
        messages = [kind] if hasattr(kind, "fields") else []
        while messages:
            message = messages.pop()
            messages.extend(message.nested_types)
            for field in message.fields:
                waiting.extend(part for part in (field.message_type, field.enum_type) if part)
    return by_file


def without_options(message):
    """A message that says nothing but its fields; that one is a map's entry is part of them."""
    is_entry = message.options.map_entry
    message.ClearField("options")
    message.ClearField("extension")
    if is_entry:
        message.options.map_entry = True
    for part in list(message.field) + list(message.enum_type) + list(message.oneof_decl):
        part.ClearField("options")
    for enum in message.enum_type:
        for value in enum.value:
            value.ClearField("options")
    for nested in message.nested_type:
        without_options(nested)


def kept(file, names):
    whole = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(whole)
    part = descriptor_pb2.FileDescriptorProto(name=whole.name, package=whole.package, syntax=whole.syntax)
    part.message_type.extend(message for message in whole.message_type if message.name in names)
    part.enum_type.extend(enum for enum in whole.enum_type if enum.name in names)
    for message in part.message_type:
        without_options(message)
    for enum in part.enum_type:
        enum.ClearField("options")
        for value in enum.value:
            value.ClearField("options")
    return part, list(whole.dependency)


def main():
    by_file = needed(loaded_pool())
    files = {name: kept(file, names) for name, (file, names) in by_file.items()}
    written = descriptor_pb2.FileDescriptorSet()
    done = set()

    def write(name):
        if name in done or name not in files:
            return
        done.add(name)
        part, dependencies = files[name]
        for dependency in dependencies:
            write(dependency)
        part.dependency.extend(dependency for dependency in dependencies if dependency in files)
        written.file.append(part)

    for name in sorted(files):
        write(name)
    INTO.write_bytes(written.SerializeToString(deterministic=True))
    print(f"{INTO}: {len(written.file)} files, {INTO.stat().st_size} bytes")


if __name__ == "__main__":
    main()
