#!/usr/bin/env python3
"""Writes the crate `wire` from Google's discovery documents.

Two steps, so that what the code was generated from is in the repository and no prose of Google's is:

  generate.py trim DIRECTORY   reads DIRECTORY/{compute.v1,...}.json, as the PyPI package google-api-python-client
                               ships them, and keeps in `discovery/` only the methods and schemas that are served
  generate.py write [INTO]     reads `discovery/` and writes `<api>/*.rs` into `src/` or INTO; run rustfmt afterwards

`make wire` runs the second step and rustfmt.
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRIMMED = HERE / "discovery"
SOURCE = HERE.parent / "src"

# What is served: a resource of the discovery document and the methods of it; `*` is all of them.
COMPUTE = {
    "addresses": "aggregatedList delete get insert list setLabels",
    "globalAddresses": "get list",
    "backendServices": "aggregatedList get list",
    "regionBackendServices": "delete get getHealth insert list listUsable patch setSecurityPolicy update testIamPermissions",
    "firewalls": "delete get insert list patch update",
    "forwardingRules": "aggregatedList delete get insert list patch setLabels setTarget",
    "globalForwardingRules": "get list",
    "globalOperations": "aggregatedList delete get list wait",
    "regionOperations": "delete get list wait",
    "zoneOperations": "delete get list wait",
    "healthChecks": "aggregatedList get list",
    "regionHealthChecks": "delete get insert list patch update",
    "images": "get getFromFamily list",
    "imageFamilyViews": "get",
    "instances": "aggregatedList delete get getGuestAttributes getSerialPortOutput insert list reset setLabels"
    " setMetadata setTags start stop setDeletionProtection",
    "machineTypes": "aggregatedList get list",
    "networkEndpointGroups": "aggregatedList list",
    "regionNetworkEndpointGroups": "attachNetworkEndpoints delete detachNetworkEndpoints get insert list listNetworkEndpoints",
    "networks": "delete get getEffectiveFirewalls insert list patch switchToCustomMode",
    "projects": "get setCommonInstanceMetadata",
    "regions": "get list",
    "zones": "get list",
    "routes": "delete get insert list",
    "securityPolicies": "aggregatedList list",
    "regionSecurityPolicies": "list",
    "sslCertificates": "aggregatedList get list",
    "regionSslCertificates": "delete get insert list",
    "sslPolicies": "aggregatedList get list listAvailableFeatures",
    "regionSslPolicies": "delete get insert list listAvailableFeatures patch",
    "subnetworks": "aggregatedList delete expandIpCidrRange get insert list listUsable patch setPrivateIpGoogleAccess",
    "targetHttpProxies": "aggregatedList get list",
    "regionTargetHttpProxies": "delete get insert list setUrlMap",
    "targetHttpsProxies": "aggregatedList get list",
    "regionTargetHttpsProxies": "delete get insert list patch setSslCertificates setUrlMap",
    "urlMaps": "aggregatedList get list",
    "regionUrlMaps": "delete get insert list patch update validate",
}

APIS = {
    # name of the module -> (document, served resources by dotted path, schemas kept besides)
    "compute": ("compute.v1", COMPUTE, []),
    "run_v1": (
        "run.v1",
        {
            "namespaces.services": "*",
            "namespaces.revisions": "*",
            "namespaces.configurations": "*",
            "namespaces.routes": "*",
            "projects.locations": "list",
            "projects.locations.services": "*",
            "projects.locations.operations": "*",
        },
        [],
    ),
    "run_v2": (
        "run.v2",
        {
            "projects.locations.services": "*",
            "projects.locations.services.revisions": "*",
            "projects.locations.builds": "submit",
            "projects.locations.operations": "*",
        },
        [],
    ),
    "certificate_manager": (
        "certificatemanager.v1",
        {
            "projects.locations": "get list",
            "projects.locations.certificates": "*",
            "projects.locations.dnsAuthorizations": "*",
            "projects.locations.certificateIssuanceConfigs": "*",
            "projects.locations.operations": "*",
        },
        [],
    ),
    "resource_manager": (
        "cloudresourcemanager.v1",
        {"projects": "get list getIamPolicy setIamPolicy testIamPermissions"},
        [],
    ),
    "service_usage": (
        "serviceusage.v1",
        {"services": "batchEnable batchGet disable enable get list", "operations": "get"},
        [],
    ),
    "iam": (
        "iam.v1",
        {
            "projects.serviceAccounts": "create delete disable enable get list patch update"
            " getIamPolicy setIamPolicy testIamPermissions",
            "projects.serviceAccounts.keys": "create delete get list",
            "roles": "get list",
        },
        [],
    ),
    "iam_credentials": ("iamcredentials.v1", {"projects.serviceAccounts": "*"}, []),
    "logging": ("logging.v2", {"entries": "list write"}, ["HttpRequest"]),
    "cloud_functions": (
        "cloudfunctions.v2",
        {
            "projects.locations": "list",
            "projects.locations.functions": "create delete generateUploadUrl get getIamPolicy list patch"
            " setIamPolicy testIamPermissions",
            "projects.locations.operations": "get list",
            "projects.locations.runtimes": "list",
        },
        [],
    ),
    "storage": (
        "storage.v1",
        {"buckets": "delete get insert list", "objects": "delete get insert list"},
        [],
    ),
    "artifact_registry": (
        "artifactregistry.v1",
        {
            "projects.locations.operations": "get",
            "projects.locations.repositories": "create delete get list",
        },
        [],
    ),
}

PROTO_PACKAGE = {
    "compute": "google.cloud.compute.v1",
    "run_v1": "google.cloud.run.v1",
    "run_v2": "google.cloud.run.v2",
    "certificate_manager": "google.cloud.certificatemanager.v1",
    "resource_manager": "google.cloud.resourcemanager.v1",
    "service_usage": "google.api.serviceusage.v1",
    "iam": "google.iam.admin.v1",
    "iam_credentials": "google.iam.credentials.v1",
    "logging": "google.logging.v2",
    "cloud_functions": "google.cloud.functions.v2",
    "storage": "storage.v1",
    "artifact_registry": "google.devtools.artifactregistry.v1",
}

OUTPUT_ONLY = re.compile(r"^\s*(output only\b|\[output[ -]only)", re.IGNORECASE)
KEPT_IN_A_FIELD = ("type", "$ref", "format", "items", "additionalProperties", "enum", "pattern", "properties")
LINES_MAX = 1500  # of one generated file, before rustfmt


# ---------------------------------------------------------------------------------------------- trim


def trim(directory):
    TRIMMED.mkdir(exist_ok=True)
    for module, (document, served, extra) in APIS.items():
        whole = json.loads((Path(directory) / f"{document}.json").read_text())
        methods = {}
        for path, names in served.items():
            resource = resource_at(whole, path)
            wanted = sorted(resource["methods"]) if names == "*" else names.split()
            for name in wanted:
                methods[f"{path}.{name}"] = trimmed_method(resource["methods"][name])
        schemas = closure(whole, methods, extra, with_responses=module in ("run_v1", "run_v2"))
        kept = {
            "document": document,
            "revision": whole["revision"],
            "rootUrl": whole["rootUrl"],
            "servicePath": whole["servicePath"],
            "batchPath": whole["batchPath"],
            "parameters": {k: trimmed_parameter(v) for k, v in sorted(whole["parameters"].items())},
            "methods": methods,
            "schemas": {name: trimmed_schema(whole["schemas"][name]) for name in schemas},
        }
        text = json.dumps(kept, indent=1, sort_keys=False) + "\n"
        (TRIMMED / f"{document}.json").write_text(text)
        print(f"{document}: {len(methods)} methods, {len(schemas)} schemas, {len(text)} bytes")


def resource_at(document, path):
    node = document
    for part in path.split("."):
        node = node["resources"][part]
    return node


def trimmed_parameter(parameter):
    kept = {k: parameter[k] for k in ("type", "location", "pattern", "enum", "format", "minimum", "maximum", "default") if k in parameter}
    if parameter.get("required"):
        kept["required"] = True
    if parameter.get("repeated"):
        kept["repeated"] = True
    return kept


def trimmed_method(method):
    kept = {"id": method["id"], "httpMethod": method["httpMethod"], "path": method["path"], "flatPath": method.get("flatPath", method["path"])}
    kept["parameters"] = {k: trimmed_parameter(v) for k, v in sorted(method.get("parameters", {}).items())}
    for side in ("request", "response"):
        if side in method:
            kept[side] = method[side]["$ref"]
    return kept


def trimmed_schema(schema):
    return {"properties": {name: trimmed_field(field) for name, field in schema.get("properties", {}).items()}}


def trimmed_field(field):
    kept = {}
    for key in KEPT_IN_A_FIELD:
        if key not in field:
            continue
        if key in ("items", "additionalProperties"):
            kept[key] = trimmed_field(field[key])
        elif key == "properties":
            kept[key] = {name: trimmed_field(inner) for name, inner in field[key].items()}
        else:
            kept[key] = field[key]
    if field.get("readOnly") or OUTPUT_ONLY.match(field.get("description", "")):
        kept["readOnly"] = True
    if "required" in field.get("annotations", {}):
        kept["required"] = sorted(field["annotations"]["required"])
    return kept


def references(field):
    if "$ref" in field:
        yield field["$ref"]
    for key in ("items", "additionalProperties"):
        if key in field:
            yield from references(field[key])
    for inner in field.get("properties", {}).values():
        yield from references(inner)


def closure(whole, methods, extra, with_responses):
    wanted = list(extra)
    for method in methods.values():
        wanted += [method[side] for side in (["request", "response"] if with_responses else ["request"]) if side in method]
    found = []
    while wanted:
        name = wanted.pop(0)
        if name in found:
            continue
        found.append(name)
        wanted += [r for f in whole["schemas"][name].get("properties", {}).values() for r in references(f)]
    return found


# --------------------------------------------------------------------------------------------- write

KEYWORDS = set(
    "abstract as async await become box break const continue do dyn else enum extern false final fn for gen if impl in let loop"
    " macro match mod move mut override priv pub ref return static struct trait true try type typeof unsafe unsized use virtual"
    " where while yield".split()
)
TAKEN = {"Option", "Box", "Vec", "String", "Value", "Field", "Schema", "Shape", "Message", "Method"}
RAW_FORBIDDEN = {"self", "super", "crate", "Self"}


def snake(name):
    name = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return name.lower()


def rust_field(name):
    field = snake(name)
    if field in RAW_FORBIDDEN:
        return field + "_"
    return f"r#{field}" if field in KEYWORDS else field


def pascal(name):
    name = re.sub(r"^GoogleCloudRunV2", "", name)
    name = "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name) if part)
    return name + "Message" if name in TAKEN else name


def quoted(text):
    return json.dumps(text, ensure_ascii=False)


def raw(text):
    return f'r"{text}"' if '"' not in text else f'r#"{text}"#'


class Api:
    """One API being written: its structs and tables, gathered before they are split over files."""

    def __init__(self, module, document):
        self.module = module
        self.document = document
        self.package = PROTO_PACKAGE[module]
        self.schemas = dict(document["schemas"])
        self.blocks = {}

    def shape(self, owner, name, field):
        """The Rust type of a field and the expression of its `Shape`."""
        if "$ref" in field:
            target = pascal(field["$ref"])
            return f"Box<{target}>", f"Shape::Message({target}::schema)"
        kind = field.get("type", "any")
        form = field.get("format")
        if kind == "array":
            inner, shape = self.shape(owner, name, field["items"])
            inner = re.sub(r"^Box<(.*)>$", r"\1", inner)
            return f"Vec<{inner}>", f"Shape::List(&{shape})"
        if kind == "object":
            if "additionalProperties" in field:
                inner, shape = self.shape(owner, name, field["additionalProperties"])
                inner = re.sub(r"^Box<(.*)>$", r"\1", inner)
                return f"BTreeMap<String, {inner}>", f"Shape::Map(&{shape})"
            if "properties" in field:
                nested = owner + pascal(name)
                if nested not in self.blocks:
                    self.message(nested, {"properties": field["properties"]})
                return f"Box<{nested}>", f"Shape::Message({nested}::schema)"
            return "Value", "Shape::Any"
        if kind == "any":
            return "Value", "Shape::Any"
        if kind == "boolean":
            return "bool", "Shape::Bool"
        if kind == "integer":
            return ("u32", "Shape::Uint32") if form == "uint32" else ("i32", "Shape::Int32")
        if kind == "number":
            return "f64", "Shape::Double"
        if kind == "string":
            if form in ("int64",):
                return "Int64", "Shape::Int64"
            if form in ("uint64",):
                return "Uint64", "Shape::Uint64"
            if form == "byte":
                return "String", "Shape::Bytes"
            if form == "google-datetime":
                return "String", "Shape::Timestamp"
            if form == "google-duration":
                return "String", "Shape::Duration"
            if "enum" in field:
                values = ", ".join(quoted(v) for v in field["enum"])
                label = f"{self.package}.{owner}.{pascal(name)}"
                return "String", f"Shape::Enum {{ name: {quoted(label)}, values: &[{values}] }}"
            return "String", "Shape::Text"
        raise SystemExit(f"{owner}.{name}: no Rust type for {field}")

    def message(self, name, schema):
        self.blocks[name] = None  # taken, so that nested messages do not come back to it
        fields, table = [], []
        seen = set()
        for wire_name, field in schema["properties"].items():
            rust_type, shape = self.shape(name, wire_name, field)
            ident = rust_field(wire_name)
            while ident in seen:
                ident += "_"
            seen.add(ident)
            fields.append(f"    /// `{wire_name}`.\n    #[serde(rename = {quoted(wire_name)}, skip_serializing_if = \"Option::is_none\")]\n    pub {ident}: Option<{rust_type}>,\n")
            required = ", ".join(quoted(r) for r in field.get("required", []))
            output_only = "true" if field.get("readOnly") else "false"
            table.append(f"        Field {{ name: {quoted(wire_name)}, shape: {shape}, output_only: {output_only}, required_by: &[{required}] }},\n")
        struct = (
            f"/// `{self.package}.{name}`.\n#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]\n"
            f"#[serde(default, deny_unknown_fields)]\npub struct {name} {{\n{''.join(fields)}}}\n\n"
        )
        static = f"{snake(name).upper()}_SCHEMA"
        tables = (
            f"static {static}: Schema = Schema {{\n    name: {quoted(self.package + '.' + name)},\n    fields: &[\n{''.join(table)}    ],\n}};\n\n"
            f"impl Message for {name} {{\n    fn schema() -> &'static Schema {{\n        &{static}\n    }}\n}}\n\n"
        )
        self.blocks[name] = struct + tables

    def methods(self):
        out = [
            "//! The methods that are served: their paths, query parameters and request messages.\n\n",
            "use super::*;\nuse crate::schema::{Message, Method, Parameter, Shape};\n\n",
            "/// The parameters every method takes.\npub static STANDARD_PARAMETERS: &[Parameter] = &[\n",
        ]
        out += [self.parameter(n, p) for n, p in self.document["parameters"].items()]
        out.append("];\n\n/// Every method that is served.\npub static METHODS: &[Method] = &[\n")
        for method in self.document["methods"].values():
            query = "".join(self.parameter(n, p) for n, p in method["parameters"].items() if p["location"] == "query")
            request = f"Some({pascal(method['request'])}::schema)" if "request" in method else "None"
            out.append(
                f"    Method {{ id: {quoted(method['id'])}, http_method: {quoted(method['httpMethod'])}, path: {quoted(method['flatPath'])},"
                f" query: &[{query}], request: {request} }},\n"
            )
        out.append("];\n")
        return "".join(out)

    def parameter(self, name, parameter):
        _, shape = self.shape("Parameter", name, {k: v for k, v in parameter.items() if k != "location"})
        repeated = "true" if parameter.get("repeated") else "false"
        return f"    Parameter {{ name: {quoted(name)}, shape: {shape}, repeated: {repeated} }},\n"

    def write(self, into):
        for name, schema in self.schemas.items():
            if pascal(name) not in self.blocks:
                self.message(pascal(name), schema)
        folder = into / self.module
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.rs"):
            old.unlink()
        files, current, lines = [], [], 0
        for name in sorted(self.blocks):
            block = self.blocks[name]
            count = block.count("\n")
            if current and lines + count > LINES_MAX:
                files.append(current)
                current, lines = [], 0
            current.append(name)
            lines += count
        if current:
            files.append(current)
        modules = []
        for names in files:
            file = snake(names[0]) if len(names) == 1 else f"{snake(names[0])}_to_{snake(names[-1])}"
            if len(files) == 1:
                file = "messages"
            body = "".join(self.blocks[name] for name in names)
            (folder / f"{file}.rs").write_text(self.header(names) + self.imports(body) + body)
            modules.append(file)
        (folder / "methods.rs").write_text(self.generated() + self.methods())
        index = [f"//! `{self.document['document']}`, revision {self.document['revision']}.\n\n"]
        index += [f"mod {m};\n" for m in sorted(modules + ["methods"])]
        index.append("\n")
        index += [f"pub use {m}::*;\n" for m in sorted(modules + ["methods"])]
        (folder / "mod.rs").write_text(self.generated() + "".join(index))

    def generated(self):
        return "// Generated by generate/generate.py; change that and run `make wire`.\n\n"

    def header(self, names):
        return self.generated() + f"//! Messages `{names[0]}` to `{names[-1]}`.\n\n"

    def imports(self, body):
        out = ["use serde::{Deserialize, Serialize};\n"]
        if re.search(r"\bValue\b", body):
            out.append("use serde_json::Value;\n")
        if "BTreeMap<" in body:
            out.append("use std::collections::BTreeMap;\n")
        out.append("\n#[allow(unused_imports, reason = \"a file may refer to no message of another\")]\nuse super::*;\n")
        numbers = [n for n in ("Int64", "Uint64") if re.search(rf"<{n}>|, {n}>", body)]
        if numbers:
            out.append(f"use crate::number::{{{', '.join(numbers)}}};\n")
        names = ["Field", "Message", "Schema"]
        if "Shape::" in body:
            names.append("Shape")
        if "Field {" not in body:
            names.remove("Field")
        out.append(f"use crate::schema::{{{', '.join(names)}}};\n\n")
        return "".join(out)


def write(into):
    for module, (document, _, _) in APIS.items():
        Api(module, json.loads((TRIMMED / f"{document}.json").read_text())).write(into)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["trim", directory]:
            trim(directory)
        case ["write"]:
            write(SOURCE)
        case ["write", into]:
            write(Path(into))
        case _:
            raise SystemExit(__doc__)
