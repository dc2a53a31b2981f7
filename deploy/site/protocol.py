"""The page of the schema: services and messages with the comments of the .proto files."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

SCHEMA = Path(__file__).parents[2] / "proto/routershift/v1/schema.binpb"
HEAD = """\
# Messages and services

The schema is `proto/routershift/v1`; its generated Python is the package `routershift.v1`. Changes stay compatible:
`make test` holds the schema against `proto/baseline.binpb`.
[Call generation from your own code](../how-to/call-generation.md) shows it in use, without Python too.
"""
# Fields of descriptor.proto, by whose numbers comments are found.
_PACKAGE_MESSAGES, _ENUMS, _SERVICES, _FIELDS, _NESTED, _NESTED_ENUMS, _METHODS, _VALUES = 4, 5, 6, 2, 3, 4, 2, 2
_SYNTAX = 12

Path_ = tuple[int, ...]


def page() -> str:
    """The files of the schema that have services first."""
    files = sorted(FileDescriptorSet.FromString(SCHEMA.read_bytes()).file, key=lambda f: (not f.service, f.name))
    return "\n".join([HEAD, *(line for file in files for line in _file(file))])


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(location.path): " ".join(
            (location.leading_comments.strip() + "\n" + location.trailing_comments.strip()).split()
        )
        for location in file.source_code_info.location
    }
    yield f"## {file.name.rpartition('/')[2]}\n"
    if said := comments.get((_SYNTAX,)):
        yield f"{_escaped(said)}\n"
    for i, service in enumerate(file.service):
        yield from _service(service, comments, (_SERVICES, i))
    for i, message in enumerate(file.message_type):
        yield from _message(message, "", comments, (_PACKAGE_MESSAGES, i))
    for i, enum in enumerate(file.enum_type):
        yield from _enum(enum, "", comments, (_ENUMS, i))


def _service(service: ServiceDescriptorProto, comments: Mapping[Path_, str], path: Path_) -> Iterator[str]:
    yield from _head(service.name, comments.get(path, ""))
    for i, method in enumerate(service.method):
        request = _stream(method.input_type, is_stream=method.client_streaming)
        response = _stream(method.output_type, is_stream=method.server_streaming)
        yield f"- `{method.name}`: {request} to {response}. {comments.get((*path, _METHODS, i), '')}".rstrip()
    yield ""


def _stream(name: str, *, is_stream: bool) -> str:
    return f"a stream of {_link(name)}" if is_stream else _link(name)


def _message(message: DescriptorProto, outer: str, comments: Mapping[Path_, str], path: Path_) -> Iterator[str]:
    name = outer + message.name
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    yield from _head(name, comments.get(path, ""))
    if message.field:
        yield "| field | number | type | meaning |\n|---|---|---|---|"
    for i, field in enumerate(message.field):
        said = _escaped(comments.get((*path, _FIELDS, i), ""))
        if field.HasField("oneof_index") and not field.proto3_optional:
            said = f"one of `{message.oneof_decl[field.oneof_index].name}`" + (f": {said}" if said else "")
        yield f"| `{field.name}` | {field.number} | {_type(field, maps)} | {said} |"
    yield ""
    for i, nested in enumerate(message.nested_type):
        if nested.name not in maps:
            yield from _message(nested, f"{name}.", comments, (*path, _NESTED, i))
    for i, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.", comments, (*path, _NESTED_ENUMS, i))


def _enum(enum: EnumDescriptorProto, outer: str, comments: Mapping[Path_, str], path: Path_) -> Iterator[str]:
    yield from _head(outer + enum.name, comments.get(path, ""))
    yield "| value | number | meaning |\n|---|---|---|"
    for i, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {_escaped(comments.get((*path, _VALUES, i), ''))} |"
    yield ""


def _head(name: str, comment: str) -> Iterator[str]:
    yield f"### {name}\n"
    if comment:
        yield f"{_escaped(comment)}\n"


def _type(field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    if entry := maps.get(field.type_name.rpartition(".")[2]):
        key, value = entry.field
        return f"map of {_scalar(key)} to {_scalar(value)}"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {_scalar(field)}"
    return f"{_scalar(field)}, optional" if field.proto3_optional else _scalar(field)


def _scalar(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(type_name: str) -> str:
    """To the heading of a message of ours; the name alone of one of protobuf's."""
    ours = type_name.removeprefix(".routershift.v1.")
    if ours == type_name:
        return f"`{type_name.removeprefix('.')}`"
    return f"[{ours}](#{ours.replace('.', '').lower()})"


def _escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")
