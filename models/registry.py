"""The versions of models: immutable folders in TensorFlow Serving's layout, each with a manifest.

    <root>/<model>/<version>/saved_model.pb, variables/, assets/    what TensorFlow Serving reads
    <root>/<model>/<version>/manifest.json                          what the version is
    <root>/<model>/publications/                                    which act of publishing made which version
    <root>/<model>/.incoming-*                                      a version being written

A version is written aside and renamed into place, so a reader sees all of it or nothing. TensorFlow Serving takes a folder for
a version only if its name is a number. A local registry takes any number of publishers; on an object store let one publish at
a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from models import signing, storage
from models.digest import (
    BOOKKEEPING,
    SAVED_MODEL,
    Digests,
    checkpoint_layout,
    file_digests,
    read_saved_model,
    values_digest,
    values_layout,
    variables_digest,
    version_digest,
)
from models.layout import check_layout
from models.manifest import Manifest, RegistryError, Training
from models.roots import check_inside, check_root
from models.signature import Signature

MANIFEST = "manifest.json"
GATE_REPORT = "gate.json"
REFERENCE = "reference.json"  # what is kept of the training rows (`models.drift`)
NOTES = (MANIFEST, GATE_REPORT, REFERENCE)  # lie beside a SavedModel's own files
LATEST = ".latest"  # the highest number that was given
STALE_S = 24 * 3600  # a folder being written for longer than a day belongs to a process that died

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_INCOMING = ".incoming-"
OBJECT_GRAPH, _ = BOOKKEEPING  # says which of a checkpoint's keys belongs to which object


class UnknownVersion(RegistryError):
    """There is no such model or version; lists those there are."""


class PublicationConflict(RegistryError):
    """A publication was repeated with another content."""


class VersionDamaged(RegistryError):
    """A version is not what its manifest says."""


Check: TypeAlias = Callable[[str, Manifest], str]
"""A gate: takes the folder that is about to be published and its manifest, raises to refuse, gives its report as JSON."""


class Registry:
    """The versions below one folder. Safe to share between threads and to pickle."""

    def __init__(self, root: str) -> None:
        """Takes a folder, which need not exist yet: a local path or a URL that Beam's FileSystems know."""
        if found := sorted(set(root) & set("*?[]")):
            # TensorFlow takes the names of checkpoints for patterns, and would not find its own files.
            raise RegistryError(
                f"a registry cannot be in {root}: TensorFlow cannot read paths with {' '.join(found)}; choose another"
            )
        check_root(root)
        self.root = root.rstrip("/") or "/"
        self._manifests: dict[tuple[str, int], Manifest] = {}
        self._layouts: dict[str, dict[str, tuple]] = {}  # by the digest of the graph

    def models(self) -> list[str]:
        """The models that have a version, in alphabetical order."""
        return sorted(name for name in storage.names(self.root) if _NAME.fullmatch(name) and self.versions(name))

    def versions(self, model: str) -> list[int]:
        """The published versions of a model, in ascending order; none for a model that is not there."""
        folder = self.model_folder(model)
        if not storage.is_local(folder):  # one listing instead of a request a version
            complete = set(storage.files(folder))
            return [version for version in self._numbers(model) if f"{version}/{MANIFEST}" in complete]
        return [v for v in self._numbers(model) if (model, v) in self._manifests or Path(folder, str(v), MANIFEST).exists()]

    def newest(self, model: str) -> int | None:
        """The newest version that is there as a whole; quicker than `versions` where there are many."""
        for version in reversed(self._numbers(model)):
            if (model, version) in self._manifests or storage.exists(storage.join(self.path(model, version), MANIFEST)):
                return version
        return None

    def path(self, model: str, version: int) -> str:
        """The folder of a version, whether it is there or not."""
        return storage.join(self.model_folder(model), str(int(version)))

    def manifest(self, model: str, version: int) -> Manifest:
        """What a version is. Read once: versions never change.

        Raises:
            UnknownVersion: there is no such version.
        """
        if (model, version) not in self._manifests:
            file = storage.join(self.path(model, version), MANIFEST)
            try:
                manifest = Manifest.from_json(storage.read_text(file))
            except FileNotFoundError:
                raise UnknownVersion(self._unknown(model, version)) from None
            except RegistryError as error:
                raise VersionDamaged(f"{file} is {error}. Publish the version again.") from error
            if (manifest.model, manifest.version) != (model, version):
                raise VersionDamaged(
                    f"{file} is the manifest of {manifest.model} {manifest.version}, not of {model} {version}. "
                    "Versions cannot be renamed: remove the folder and publish it under the new name."
                )
            self._manifests[model, version] = manifest
        return self._manifests[model, version]

    def publish(
        self,
        model: str,
        saved_model_dir: str,
        *,
        parent: int | None = None,
        training: Training | None = None,
        metrics: Mapping[str, float] | None = None,
        publication: str | None = None,
        check: Check | None = None,
        reference: Callable[[str], str] | None = None,
    ) -> Manifest:
        """Publishes a copy of a SavedModel as the model's next version. It becomes a candidate: live only once activated.

        Args:
            model: letters, digits, dots, underscores and hyphens.
            saved_model_dir: a folder with `saved_model.pb`, with a `serving_default` signature over named columns.
            parent: the version it was made from.
            training: what it learned from.
            metrics: figures by name.
            publication: names this act of publishing. Once there is a version by this publication, it is returned instead.
            check: a gate; what it raises is raised here, and nothing is published.
            reference: called with a copy that passed the gate; gives what is kept of the training rows (`models.drift`). None
                keeps what the folder brings.

        Raises:
            DigestError, SignatureError: this is no SavedModel that rows can be fed to.
            PublicationConflict: the publication made a version already, with another content.
            RegistryError: a name that will not do, or a link that points out of the folder.
            OSError: the registry cannot be written to.
        """
        if parent is not None:
            self.manifest(model, parent)
        if not storage.exists(storage.join(saved_model_dir, SAVED_MODEL)):
            read_saved_model(saved_model_dir)  # says what is there instead
        with self._incoming(model) as incoming:
            try:
                storage.copy_tree(saved_model_dir, incoming)
            except ValueError as error:
                raise RegistryError(f"cannot publish {saved_model_dir}: {error}") from error
            try:
                digests, signature = version_digest(incoming), Signature.from_saved_model(incoming)
            except ValueError as error:
                raise type(error)(str(error).replace(incoming, saved_model_dir)) from error  # a path that the user knows
            draft = Manifest(model, 0, digests, signature, parent, training, dict(metrics or {}), publication)
            return self._place(incoming, replace(draft, files=file_digests(incoming, NOTES)), check, reference)

    def publish_variables(
        self,
        model: str,
        parent: int,
        write_variables: Callable[[str], None],
        *,
        training: Training | None = None,
        metrics: Mapping[str, float] | None = None,
        publication: str | None = None,
        check: Check | None = None,
        reference: Callable[[str], str] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Publishes a version with its parent's graph and other values of its variables: fast, as nothing is traced or copied.

        Args:
            model: the model's name.
            parent: the version whose graph and assets it has.
            write_variables: called once with a local folder, there already, to write the checkpoint `<folder>/variables`
                to: every entry of the parent's checkpoint, the object graph included, with the same dtypes and shapes.
            training: what it learned from.
            metrics: figures by name.
            publication: see `publish`.
            check: see `publish`.
            reference: see `publish`; None keeps nothing.
            values: the tensors that `write_variables` writes, by checkpoint key, where they are at hand: they need not be read
                again from what was written. Who loads the version compares.

        Raises:
            RegistryError: the variables are not those of the parent's graph.
            PublicationConflict, UnknownVersion, OSError: see `publish`.
        """
        origin = self.manifest(model, parent)
        with self._incoming(model) as incoming, storage.local_copy(self.path(model, parent)) as theirs:
            for name in storage.files(theirs):
                if name not in NOTES and not name.startswith("variables/"):
                    storage.link_or_copy(storage.join(theirs, name), storage.join(incoming, name))
            variables = Path(incoming, "variables")
            variables.mkdir()
            write_variables(str(variables))
            if (graph := origin.digests.graph) not in self._layouts:
                self._layouts[graph] = checkpoint_layout(theirs)
            check_layout(self._layouts[graph], checkpoint_layout(incoming) if values is None else values_layout(values))
            for file in variables.iterdir():
                storage.sync_file(str(file))
            found = variables_digest(incoming) if values is None else values_digest(values)
            digests = Digests.of_parts(origin.digests.graph, found)
            draft = Manifest(model, 0, digests, origin.signature, parent, training, dict(metrics or {}), publication)
            return self._place(incoming, replace(draft, files=origin.files), check, reference)

    def find_publication(self, model: str, publication: str) -> Manifest | None:
        """The version that this publication made; None where it has not, or not to the end."""
        try:
            version = json.loads(storage.read_text(self._publication_file(model, publication)))["version"]
            found = self.manifest(model, version)
        except (FileNotFoundError, UnknownVersion):
            return None
        return found if found.publication == publication else None

    def trusted(self, model: str, version: int, *, graph: bool) -> tuple[Manifest, str]:
        """A version's manifest and folder, once all is checked that can be before anything in it is loaded.

        Args:
            model: the model's name.
            version: of the model.
            graph: whether the graph and the assets will be read, too, and not only the variables.

        Raises:
            UnknownVersion: there is no such version.
            PathRefused: a link leads out of the registry.
            SignatureRefused: see `models.signing`.
            VersionDamaged: a file is not what was published.
        """
        manifest, path = self.manifest(model, version), self.path(model, version)
        signing.check_if_required(f"version {version} of {model}", manifest.to_dict(), manifest.signed)
        if storage.is_local(path):
            check_inside(path, self.root)
            if graph and manifest.files and (differing := _differing(manifest.files, file_digests(path, NOTES))):
                raise VersionDamaged(
                    f"version {version} of {model} is not what was published: {', '.join(differing[:4])} changed. "
                    "Publish it again and activate that one."
                )
        return manifest, path

    def note(self, model: str, version: int, name: str) -> str | None:
        """One of the `NOTES` of a version: what the gate said, or the reference. None for one that came without."""
        try:
            return storage.read_text(storage.join(self.path(model, version), name))
        except FileNotFoundError:
            return None

    def verify(self, model: str, version: int) -> Manifest:
        """Compares a version's files with its manifest.

        Raises:
            VersionDamaged: says what differs.
        """
        expected, path = self.manifest(model, version), self.path(model, version)
        try:
            with storage.local_copy(path) as local:
                came, signature = version_digest(local), Signature.from_saved_model(local)
        except ValueError as error:
            raise VersionDamaged(f"{model} {version} at {path} is damaged: {error}") from error
        parts = [part for part in ("graph", "variables") if getattr(came, part) != getattr(expected.digests, part)]
        parts += ["signature"] * (signature != expected.signature)
        if parts or came.version != expected.digests.version:
            raise VersionDamaged(
                f"{model} {version} at {path} is not what was published: other {' and '.join(parts) or 'digests'}; "
                f"expected {expected.digests.version}, came {came.version}. Activate another version and publish it again."
            )
        return expected

    def clean(self) -> list[str]:
        """Removes what processes that died left behind more than a day ago; returns the paths."""
        removed = []
        for model in storage.names(self.root) if storage.is_local(self.root) else ():
            for path in Path(self.root, model).glob(f"{_INCOMING}*") if _NAME.fullmatch(model) else ():
                if path.stat().st_mtime < time.time() - STALE_S:
                    storage.remove_tree(str(path))
                    removed.append(str(path))
        return removed

    def model_folder(self, model: str) -> str:
        """The folder of a model, whether it is there or not.

        Raises:
            RegistryError: this cannot name a model.
        """
        if not _NAME.fullmatch(model):
            raise RegistryError(
                f"{model!r} cannot name a model: expected letters, digits, dots, underscores and hyphens, no dot at the start"
            )
        return storage.join(self.root, model)

    def _numbers(self, model: str) -> list[int]:
        """Every folder with a version's name, foreign ones without a manifest too."""
        names = storage.names(self.model_folder(model))
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)

    def _unknown(self, model: str, version: int) -> str:
        if there := self.versions(model):
            listed = ", ".join(map(str, there)) if len(there) <= 8 else f"{there[0]} to {there[-1]}"
            return f"model {model} has no version {version} in {self.root}; it has {listed}"
        listed = ", ".join(self.models()) or "none"
        return f"there is no model {model!r} in {self.root}; the models there: {listed}. Publish a version first."

    def _publication_file(self, model: str, publication: str) -> str:
        name = hashlib.sha256(publication.encode()).hexdigest()[:32]  # any text names a publication, but not a file
        return storage.join(self.model_folder(model), "publications", f"{name}.json")

    @contextlib.contextmanager
    def _incoming(self, model: str) -> Iterator[str]:
        """A folder to write a version in: beside the versions where they are local."""
        folder = self.model_folder(model)
        if storage.is_local(folder):
            path = Path(folder, f"{_INCOMING}{uuid.uuid4().hex}")
            storage.make_folder(str(path))
        else:
            path = Path(tempfile.mkdtemp(prefix="midstream-"))
        try:
            yield str(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _place(self, incoming: str, draft: Manifest, check: Check | None, reference: Callable[[str], str] | None) -> Manifest:
        """Gives a complete folder the next number, if the gate lets it pass."""
        folder = self.model_folder(draft.model)
        if check is not None:
            storage.write_synced(str(Path(incoming, GATE_REPORT)), check(incoming, draft).encode())
        if reference is not None:
            storage.write_synced(str(Path(incoming, REFERENCE)), reference(incoming).encode())
        draft = replace(draft, signed=signing.sign_if_asked(draft.to_dict()))
        with storage.locked(storage.join(folder, ".lock")):
            if draft.publication and (made := self.find_publication(draft.model, draft.publication)):
                if made.digests == draft.digests:
                    return made
                raise PublicationConflict(
                    f"publication {draft.publication!r} of {draft.model} has made version {made.version} with digest "
                    f"{made.digests.version[:12]}, and comes again with {draft.digests.version[:12]}. Give it another id."
                )
            # A number is never given twice, even if its folder is gone: the log may still name it.
            latest = storage.join(folder, LATEST)
            version = max([_read_number(latest), *self._numbers(draft.model)]) + 1
            while True:
                manifest = replace(draft, version=version, created=datetime.now(UTC).isoformat(timespec="milliseconds"))
                storage.write_synced(str(Path(incoming, MANIFEST)), manifest.to_json().encode())
                if draft.publication:
                    # Before the version: the note is believed only once the version is there and says the same.
                    storage.put_copy(str(Path(incoming, MANIFEST)), self._publication_file(draft.model, draft.publication))
                try:
                    storage.publish_folder(incoming, self.path(draft.model, version), last=MANIFEST)
                except FileExistsError:  # somebody took the number without the lock, as a copy by hand does
                    version += 1
                    continue
                storage.write_text_atomically(latest, f"{version}\n")
                self._manifests[draft.model, version] = manifest
                return manifest


def _read_number(file: str) -> int:
    try:
        return int(storage.read_text(file))
    except (FileNotFoundError, ValueError):
        return 0


def _differing(expected: Mapping[str, str], came: Mapping[str, str]) -> list[str]:
    return sorted(name for name in expected.keys() | came.keys() if expected.get(name) != came.get(name))
