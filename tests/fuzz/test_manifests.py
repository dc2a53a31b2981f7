"""Announcements and files of weights: nothing outside the weights root is read, and what is damaged is said to be."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from routershift.v1 import trajectory_pb2 as pb
from services.learner.checkpointing import checkpoint
from shared.errors import CorruptDataError, NotFoundError
from shared.models.folder import tensor_shapes
from shared.weights import published

FUZZ = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_NAMES = st.sampled_from(
    ["v1", "..", ".", "", "/", "v1/..", "../secret", "v1/a.safetensors", "a.safetensors", "secret.safetensors",
     "..\\secret", "a.safetensors\x00", "a.safetensors\n", "%2e%2e", "~", "v1/", "A.SAFETENSORS"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights root with one version, and files of the same name around it that nobody may reach."""
    folder = tmp_path_factory.mktemp("volume")
    root = folder / "weights"
    published.publish(
        root, 1, lambda into: save_file({"w": np.ones((2, 3), np.float32)}, into / "a.safetensors"), keep=1
    )
    (root / published.folder_name(1)).rename(root / "v1")
    for outside in (folder / "secret", folder, root):
        outside.mkdir(exist_ok=True)
        (outside / "a.safetensors").write_bytes((root / "v1/a.safetensors").read_bytes())
        (outside / "secret.safetensors").write_bytes((root / "v1/a.safetensors").read_bytes())
    return root


@pytest.fixture(scope="module")
def right(root: Path) -> pb.WeightsManifest:
    """What announces the version."""
    return published._describe(root / "v1", "v1", 1)


@FUZZ
@given(folder=_NAMES, name=_NAMES)
@example(folder="v1", name="a.safetensors")
@example(folder="..", name="a.safetensors")
@example(folder="v1", name="../a.safetensors")
def test_no_name_leaves_the_root(root: Path, right: pb.WeightsManifest, folder: str, name: str) -> None:
    manifest = pb.WeightsManifest()
    manifest.CopyFrom(right)
    manifest.folder, manifest.files[0].name = folder, name
    try:
        (path,) = published.verify(root, manifest)
    except (CorruptDataError, NotFoundError):
        assert (folder, name) != ("v1", "a.safetensors")
        return
    assert path.resolve() == (root / "v1/a.safetensors").resolve()


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 120), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4))
def test_an_announcement_of_which_bytes_were_changed(
    root: Path, right: pb.WeightsManifest, edits: list[tuple[int, bytes, int]]
) -> None:
    data = bytearray(right.SerializeToString())
    for start, piece, gone in edits:
        data[start : start + gone] = piece
    try:
        manifest = pb.WeightsManifest.FromString(bytes(data))
    except DecodeError:
        return
    try:
        paths = published.verify(root, manifest)
    except (CorruptDataError, NotFoundError):
        return
    assert {path.resolve() for path in paths} == {(root / "v1/a.safetensors").resolve()}


@FUZZ
@given(_NAMES)
@example("a.safetensors")
@example("../a.safetensors")
def test_no_name_of_a_checkpoint_leaves_its_folder(tmp_path: Path, root: Path, name: str) -> None:
    right, folder = (root / "v1/a.safetensors").read_bytes(), tmp_path / "step-1"
    folder.mkdir(exist_ok=True)
    for place in (folder, tmp_path):
        (place / "a.safetensors").write_bytes(right)
    expected = {"size": len(right), "sha256": hashlib.sha256(right).hexdigest()}
    (folder / checkpoint.MANIFEST).write_text(json.dumps({name: expected}))
    try:
        checkpoint.verify(folder)
    except CorruptDataError:
        assert name != "a.safetensors"
        return
    assert name == "a.safetensors"


@FUZZ
@given(
    edits=st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=4)), max_size=4),
    header=st.none() | st.integers(0, 2**64 - 1),
    keep=st.none() | st.integers(0, 200),
)
@example(edits=[], header=2**63, keep=None)
@example(edits=[], header=None, keep=9)
def test_a_file_of_tensors(
    root: Path, tmp_path: Path, edits: list[tuple[int, bytes]], header: int | None, keep: int | None
) -> None:
    data = bytearray((root / "v1/a.safetensors").read_bytes())
    for start, piece in edits:
        data[start : start + len(piece)] = piece
    if header is not None:
        data[:8] = struct.pack("<Q", header)
    file = tmp_path / "b.safetensors"
    file.write_bytes(data[:keep])
    try:
        shapes = tensor_shapes([file])
    except CorruptDataError as error:
        assert str(file) in str(error)  # noqa: PT017
        return
    for shape in shapes.values():
        assert all(size >= 0 for size in shape)
