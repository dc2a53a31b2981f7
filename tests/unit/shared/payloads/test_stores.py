"""What every payload store promises, held on each of them: files, and the object stores of obstore."""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.errors import CorruptDataError, MissingDependencyError, PreconditionError
from shared.extras import missing
from shared.payloads.folder import FolderStore
from shared.payloads.registry import make_store
from shared.payloads.settings import PayloadSettings
from shared.payloads.store import PayloadStore, check_key, new_key, source_of

Make = Callable[[], PayloadStore]


def _object_store(url: str) -> PayloadStore:
    pytest.importorskip("obstore", reason="the package obstore, of the extra object-store, is not installed")
    found = make_store(PayloadSettings(store="object_store", url=url), Path("runs/one"))
    assert found is not None
    return found


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a bucket of moto's server: a FAKE of S3 that speaks its protocol over HTTP."""
    pytest.importorskip("obstore", reason="the package obstore, of the extra object-store, is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server], which stands for S3, is not installed")
    boto3 = pytest.importorskip("boto3", reason="moto[server], which stands for S3, is not installed")
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    bucket = f"payloads-{port}"  # the buckets of its servers are the same
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", region_name="us-east-1", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/somewhere"
    running.stop()


@pytest.fixture(params=["folder", "obstore_file", "obstore_memory", "obstore_s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PayloadStore:
    if request.param == "folder":
        return FolderStore(tmp_path)
    if request.param == "obstore_file":
        return _object_store(f"file://{tmp_path}/objects")
    if request.param == "obstore_s3":
        return _object_store(request.getfixturevalue("s3"))
    memory = pytest.importorskip("obstore.store", reason="the package obstore is not installed").MemoryStore()
    from shared.payloads.object_store import ObjectStore

    return ObjectStore(memory, "memory")


def test_what_is_put_is_read_in_parts_and_deleted_any_number_of_times(store: PayloadStore) -> None:
    one, other = new_key("prompts", "1-0"), new_key("prompts", "1-0")
    store.put(one, [b"abc", b"", b"defgh"])
    store.put(other, [b"x" * 100_000])
    assert store.get(one) == b"abcdefgh"
    assert store.get(one, 2, 3) == b"cde"
    assert store.get(one, 6, 99) == b"gh"
    assert {(found.key, found.size) for found in store.list()} == {(one, 8), (other, 100_000)}
    for _ in range(2):
        store.delete(one)
    with pytest.raises(FileNotFoundError):
        store.get(one, 0, 3)
    with pytest.raises(FileNotFoundError):
        store.get(one)
    assert [found.key for found in store.list()] == [other]


def test_a_store_lists_objects_of_runs_alone_and_says_how_old_they_are(store: PayloadStore) -> None:
    key = new_key("episodes", "7-3")
    store.put("payload-store", [b"a mark"])
    store.put(key, [b"abc"])
    (found,) = store.list()
    assert found.key == key
    assert abs(found.modified - time.time()) < 3600


def test_readers_see_a_whole_file_or_none_while_it_is_written(tmp_path: Path) -> None:
    store, key, seen = FolderStore(tmp_path, fsync=False), new_key("prompts", "1-0"), set[int]()
    part = b"x" * 65_536
    writer = threading.Thread(target=store.put, args=(key, [part] * 400))
    writer.start()
    while writer.is_alive():
        try:
            seen.add(len(store.get(key)))
        except FileNotFoundError:
            seen.add(0)
    writer.join()
    seen.add(len(store.get(key)))
    assert seen <= {0, 400 * len(part)}


def test_files_are_readable_by_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = make_store(PayloadSettings(store="folder"), tmp_path / "run")
        assert store is not None
        store.put(new_key("prompts", "1-0"), [b"abc"])
    finally:
        os.umask(before)
    (file,) = (tmp_path / "run/payloads").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_write_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own whose files may have 64 KiB: the kernel refuses the rest, with EFBIG for ENOSPC."""
    program = (
        "import sys, signal, resource; from pathlib import Path; from shared.payloads.folder import FolderStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))\n"
        "try: FolderStore(Path(sys.argv[1])).put('prompts-1-0-' + '0' * 16, [b'x' * 40000] * 2)\n"
        "except OSError as error: print(error.errno)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "27", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_keys_name_their_source_and_paths_are_none() -> None:
    key = new_key("prompts", "1700000000000-12")
    assert source_of(key) == ("prompts", "1700000000000-12")
    assert key != new_key("prompts", "1700000000000-12")
    for name in ("", "../x", f"../{key}", f"{key}/..", f"/{key}", key.upper(), f"{key}\n"):
        assert source_of(name) is None
        with pytest.raises(CorruptDataError, match=r"payload\.key"):
            check_key(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folder": "/x"}, "set store to 'folder'"),
        ({"store": "object_store"}, "needs one"),
        ({"store": "folder", "url": "s3://b/p"}, "no other has it"),
        ({"store": "object_store", "url": "http://b/p"}, "s3:// or file://"),
        ({"store": "object_store", "url": "s3://me:secret@b/p"}, "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PayloadSettings.model_validate(settings)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PreconditionError, match=r"payloads\.folder .*/file/one cannot be made: Not a directory"):
        make_store(PayloadSettings(store="folder", folder=tmp_path / "file"), Path("runs/one"))


def test_without_obstore_the_error_names_the_extra() -> None:
    error = missing("payloads.store 'object_store'", ModuleNotFoundError(name="obstore.store"))
    assert isinstance(error, MissingDependencyError)
    assert "pip install 'routershift[object-store]'" in str(error)
