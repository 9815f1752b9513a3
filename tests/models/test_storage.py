import errno
import os
import threading

import pytest

from models import storage
from tests.models import memory_files


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    memory_files.FILES.clear()
    return str(tmp_path / "folder") if request.param == "local" else "mem://bucket/folder"


def test_files_come_back_as_they_were_written(folder):
    path = storage.join(folder, "a", "b.txt")
    assert not storage.exists(path) and storage.names(folder) == []
    with pytest.raises(FileNotFoundError):
        storage.read_text(path)
    storage.write_text_atomically(path, "é\n")
    storage.write_text_atomically(path, "è\r\n")
    assert storage.read_text(path) == "è\r\n" and storage.exists(path) and storage.exists(storage.join(folder, "a"))
    assert (
        storage.names(folder) == ["a"]
        and storage.files(folder) == ["a/b.txt"]
        and storage.names(storage.join(folder, "a")) == ["b.txt"]
    )


def test_what_is_there_is_never_replaced_by_create(folder):
    path = storage.join(folder, "entry")
    assert storage.create(path, b"one")
    assert not storage.create(path, b"two")
    assert storage.read_bytes(path) == b"one" and storage.names(folder) == ["entry"]


def test_of_many_writers_one_creates(tmp_path):
    start, created = threading.Barrier(8), []

    def write(number):
        start.wait()
        for name in range(20):
            created.extend([(name, number)] * storage.create(str(tmp_path / f"e{name}"), b"%d" % number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(name for name, _ in created) == list(range(20))
    assert all((tmp_path / f"e{name}").read_bytes() == b"%d" % number for name, number in created)


def test_a_folder_is_published_once(folder, tmp_path):
    final = storage.join(folder, "1")
    for number in range(2):
        draft = tmp_path / f"draft{number}"
        (draft / "sub").mkdir(parents=True)
        (draft / "sub" / "x").write_text(str(number))
        (draft / "manifest.json").write_text(str(number))
    storage.make_folder(folder) if storage.is_local(folder) else None
    storage.publish_folder(str(tmp_path / "draft0"), final, last="manifest.json")
    with pytest.raises(FileExistsError):
        storage.publish_folder(str(tmp_path / "draft1"), final, last="manifest.json")
    assert storage.files(final) == ["manifest.json", "sub/x"] and storage.read_text(storage.join(final, "sub", "x")) == "0"
    if not storage.is_local(folder):
        assert list(memory_files.FILES)[-1].endswith("manifest.json"), "the manifest is last"
    storage.copy_tree(final, storage.join(folder, "2"))
    storage.remove_tree(final)
    storage.remove_tree(final)
    assert storage.names(folder) == ["2"] and storage.files(storage.join(folder, "2")) == ["manifest.json", "sub/x"]


def test_links_that_leave_the_folder_are_refused(tmp_path):
    (tmp_path / "secret").write_text("s")
    inside = tmp_path / "m"
    inside.mkdir()
    (inside / "a").write_text("a")
    (inside / "b").symlink_to("a")
    assert storage.files(str(inside)) == ["a", "b"]
    storage.copy_tree(str(inside), str(tmp_path / "copy"))
    assert not (tmp_path / "copy" / "b").is_symlink() and (tmp_path / "copy" / "b").read_text() == "a"
    for target in (tmp_path / "secret", "../secret", inside, "nowhere"):
        (inside / "c").symlink_to(target)
        with pytest.raises(ValueError, match="is a link to"):
            storage.copy_tree(str(inside), str(tmp_path / "other"))
        (inside / "c").unlink()
    (tmp_path / "alias").symlink_to(inside)
    assert storage.files(str(tmp_path / "alias")) == ["a", "b"], "the folder itself may be a link"


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "Allow this user"), (errno.EROFS, "read-only")]
)
def test_errors_say_where_and_what_to_do(tmp_path, monkeypatch, code, says):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    for write in (storage.create, storage.write_synced, lambda path, data: storage.write_text_atomically(path, data.decode())):
        with pytest.raises(OSError, match=rf"cannot .*file.*{says}") as failed:
            write(str(tmp_path / "file"), b"x")
        assert failed.value.errno == code and str(failed.value).count("cannot") == 1
        assert storage.names(str(tmp_path)) in ([], ["file"]), "no temporary file is left"
        (tmp_path / "file").unlink(missing_ok=True)


def test_a_file_where_a_folder_is_wanted(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(OSError, match="A file is where a folder is wanted"):
        storage.create(str(tmp_path / "f" / "g"), b"x")


def test_a_lock_keeps_others_out(tmp_path):
    order = []

    def other():
        with storage.locked(str(tmp_path / ".lock")):
            order.append("other")

    with storage.locked(str(tmp_path / ".lock")):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
