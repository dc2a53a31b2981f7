"""The schema as reflection tells it, with the comments of the .proto files that the generated Python lacks."""

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool


class CommentedPool:
    """The default descriptor pool, except that files of the schema come with their comments (source code info).

    It has of a pool what gRPC's reflection asks for. `make proto` writes the descriptors with comments.
    """

    def __init__(self) -> None:
        described = descriptor_pb2.FileDescriptorSet.FromString(
            files("routershift.v1").joinpath("schema.binpb").read_bytes()
        )
        self._commented = {file.name: file for file in described.file}
        self._pool = descriptor_pool.Default()

    def FindFileByName(self, name: str) -> "_File":  # noqa: N802
        return _File(self._pool.FindFileByName(name), self._commented)

    def FindFileContainingSymbol(self, name: str) -> "_File":  # noqa: N802
        return _File(self._pool.FindFileContainingSymbol(name), self._commented)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


class _File:
    """A file descriptor whose proto has comments where the schema has this file."""

    def __init__(self, descriptor: Any, commented: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
        self._descriptor = descriptor
        self._commented = commented
        self.name: str = descriptor.name

    @property
    def dependencies(self) -> "list[_File]":
        return [_File(each, self._commented) for each in self._descriptor.dependencies]

    def CopyToProto(self, proto: descriptor_pb2.FileDescriptorProto) -> None:  # noqa: N802
        if (commented := self._commented.get(self.name)) is not None:
            proto.CopyFrom(commented)
        else:
            self._descriptor.CopyToProto(proto)
