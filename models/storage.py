"""Files and folders, on local paths and on object stores (`gs://`, `s3://`, `hdfs://`), with the promises a registry needs.

Local paths go straight to the operating system: creating a file and publishing a folder are atomic there, survive a loss of
power and are safe with any number of writers. Other paths go through Beam's `FileSystems`, which has no "create only if
absent": there the same calls are right with one writer at a time, and say so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models import syncing

TEMPORARY_PREFIX = ".tmp-"


_HINTS = {
    errno.ENOSPC: "The disk is full: free some space and try again.",
    errno.EDQUOT: "The disk quota is used up: free some space and try again.",
    errno.EACCES: "Allow this user to write there, or choose another folder.",
    errno.EPERM: "Allow this user to write there, or choose a folder on a file system with hard links.",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.ENOTDIR: "A file is where a folder is wanted: move it away, or choose another folder.",
    errno.ENOTSUP: "The file system has no hard links, which a log safe with several writers needs: choose another folder.",
}


def is_local(path: str) -> bool:
    """Whether the path is the operating system's, and not a URL."""
    return "://" not in path


def join(path: str, *names: str) -> str:
    """A path below another one."""
    return "/".join([path.rstrip("/") or "/", *names]).replace("//", "/", 1 if path == "/" else 0)


def _remote() -> Any:
    from apache_beam.io.filesystems import FileSystems  # takes a second to import, and a local registry never needs it

    return FileSystems


@contextlib.contextmanager
def _explained(doing: str, path: str) -> Iterator[None]:
    """Errors of the operating system, with the path and with what to do."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        if (error.strerror or "").startswith("cannot "):
            raise  # explained further in
        hint = _HINTS.get(error.errno or 0, "")
        raise OSError(error.errno, f"cannot {doing} {path}: {error.strerror or error}. {hint}".rstrip()) from error


def read_bytes(path: str) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: it is not there.
    """
    if is_local(path):
        with _explained("read", path):
            return Path(path).read_bytes()
    if not exists(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", path)
    with _remote().open(path, compression_type="uncompressed") as file:
        return bytes(file.read())


def read_text(path: str) -> str:
    """A UTF-8 file's content; see `read_bytes`."""
    return read_bytes(path).decode()


def write_text_atomically(path: str, text: str) -> None:
    """Writes or replaces a UTF-8 file; see `write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: str, data: bytes) -> None:
    """Writes or replaces a file: whoever reads sees the old content or the new one. Makes the folder."""
    if not is_local(path):
        _write_remote(path, data)
        return
    with _explained("write", path):
        temporary = _write_temporary(path, data)
        temporary.replace(path)
        sync_folder(str(Path(path).parent))


def create(path: str, data: bytes) -> bool:
    """Creates a file if there is none by this name.

    Local: the whole file appears at once, to exactly one of any number of writers, and is on the disk when this returns; a
    process killed on the way leaves at most a `.tmp-*` file. Elsewhere it is *not* atomic: two writers at the same moment may
    both be told True, so let one process at a time write there.

    Returns:
        False where the name was taken; the file there is left as it is.
    """
    if not is_local(path):
        if exists(path):
            return False
        _write_remote(path, data)
        return True
    with _explained("create", path):
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync_folder(str(Path(path).parent))
        return True


def _write_temporary(path: str, data: bytes) -> Path:
    make_folder(str(Path(path).parent))
    temporary = Path(path).parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        _write_synced(temporary, data)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_synced(path: str, data: bytes) -> None:
    """Writes a local file to the disk."""
    with _explained("write", path):
        _write_synced(Path(path), data)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        syncing.to_disk(file.fileno())


def sync_file(path: str) -> None:
    """Puts a local file's content on the disk."""
    if syncing.is_left_to_another():
        return
    with _explained("write", path), Path(path).open("rb") as file:
        syncing.to_disk(file.fileno())


def make_folder(path: str) -> None:
    """Makes a local folder and those above it."""
    with _explained("create", path):
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def _write_remote(path: str, data: bytes) -> None:
    with _remote().create(path, mime_type="application/octet-stream", compression_type="uncompressed") as file:
        file.write(data)


def sync_folder(path: str) -> None:
    """Puts a local folder's entries on the disk."""
    if syncing.is_left_to_another():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        syncing.to_disk(descriptor)
    finally:
        os.close(descriptor)


def names(path: str) -> list[str]:
    """The names directly in a folder, in no order; none where there is no folder."""
    if is_local(path):
        try:
            with _explained("list", path):
                return [entry.name for entry in os.scandir(path)]
        except FileNotFoundError:
            return []
    prefix = path.rstrip("/") + "/"
    return sorted({file[len(prefix) :].split("/", 1)[0] for file in _files(path)})


def exists(path: str) -> bool:
    """Whether there is a file or a folder by this name."""
    return Path(path).exists() if is_local(path) else bool(_remote().exists(path) or _files(path))


def _files(path: str) -> list[str]:
    """The files below a folder that is not local."""
    [match] = _remote().match([path.rstrip("/") + "/**"])
    return [metadata.path for metadata in match.metadata_list]


def files(path: str) -> list[str]:
    """The files below a folder, as paths relative to it, sorted.

    Raises:
        ValueError: a link points out of the folder or at a folder, so that a copy would hold what is not the folder's.
    """
    if not is_local(path):
        prefix = path.rstrip("/") + "/"
        return sorted(file[len(prefix) :] for file in _files(path))
    return sorted(_files_below(path, path, ""))


def _files_below(root: str, folder: str, prefix: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(root, entry.path, f"{prefix}{entry.name}/")
            continue
        if entry.is_symlink():
            target, inside = Path(entry.path).resolve(), Path(root).resolve()
            if not (target.is_relative_to(inside) and target.is_file()):
                raise ValueError(
                    f"{entry.path} is a link to {target}; expected files, or links to files inside {inside}. "
                    "Put a copy in its place."
                )
        yield prefix + entry.name


def copy_tree(source: str, target: str) -> None:
    """Copies a folder's files, from and to any file system; local ones are on the disk when this returns.

    Raises:
        ValueError: see `files`.
    """
    for name in files(source):
        _copy_file(join(source, name), join(target, name))


def _copy_file(source: str, target: str) -> None:
    if is_local(target):
        make_folder(str(Path(target).parent))
    with contextlib.ExitStack() as stack:
        if is_local(source):
            reader: Any = stack.enter_context(Path(source).open("rb"))
        else:
            reader = stack.enter_context(_remote().open(source, compression_type="uncompressed"))
        if not is_local(target):
            writer: Any = _remote().create(target, mime_type="application/octet-stream", compression_type="uncompressed")
            shutil.copyfileobj(reader, stack.enter_context(writer))
            return
        stack.enter_context(_explained("write", target))
        writer = stack.enter_context(Path(target).open("wb"))
        shutil.copyfileobj(reader, writer)
        writer.flush()
        syncing.to_disk(writer.fileno())


def link_or_copy(source: str, target: str) -> None:
    """Gives a local file that is never changed a second name; a copy where the file system has no hard links."""
    with _explained("write", target):
        try:
            try:
                os.link(source, target)
            except FileNotFoundError:  # the folder, most likely
                make_folder(str(Path(target).parent))
                os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
                raise
            shutil.copyfile(source, target)


def put_copy(source: str, target: str) -> None:
    """Puts a copy of a local file that is never changed in the place of `target`, local ones by a second name."""
    if is_local(target):
        with _explained("replace", target):
            Path(target).unlink(missing_ok=True)
        link_or_copy(source, target)
    else:
        _copy_file(source, target)


def publish_folder(temporary: str, final: str, last: str) -> None:
    """Gives a complete local folder its final name.

    Local: by one rename; nobody ever sees a part of it. Elsewhere its files are copied, and who reads takes the folder for
    complete only when `last` is there; two writers of the same name are not kept apart.

    Args:
        temporary: a local folder; for a local `final`, on the same file system. It is gone afterwards.
        final: the name to give it.
        last: the name of the file that is copied after all others.

    Raises:
        FileExistsError: the name is taken.
    """
    if exists(final):
        raise FileExistsError(errno.EEXIST, "this folder is there already", final)
    if is_local(final):
        try:
            with _explained("publish", final):
                Path(temporary).rename(final)
                sync_folder(str(Path(final).parent))
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # a folder that is not empty is never replaced
                raise FileExistsError(errno.EEXIST, "this folder is there already", final) from error
            raise
        return
    for name in sorted(files(temporary), key=lambda name: name == last):
        _copy_file(join(temporary, name), join(final, name))
    remove_tree(temporary)


def remove_tree(path: str) -> None:
    """Removes a folder with all that is in it; nothing happens where there is none."""
    if is_local(path):
        with _explained("remove", path), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
    elif exists(path):
        _remote().delete(_files(path))


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A folder itself where it is local, else a copy for as long as the block runs."""
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="midstream-") as local:
        copy_tree(path, local)
        yield local


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Keeps other processes and threads out, for as long as the block runs, by a lock on a local file.

    The operating system frees it when a process dies. Elsewhere nobody is kept out: one writer at a time.
    """
    if not is_local(path):
        yield
        return
    import fcntl

    with _explained("lock", path):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            make_folder(str(Path(path).parent))
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with _explained("lock", path):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
