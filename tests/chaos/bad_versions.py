"""Every kind of bad version, and the attempt to get it to serve: through `publish`, by hand into the registry, after
activation.

An attempt gives what the user was told. It raises `Served` if nobody refused.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models import isolated_tasks, storage
from models.activation_log import ActivationLog
from models.activations import Activation, to_json
from models.gate.config import GateConfig
from models.gate.gate import check_published, publish_checked
from models.isolation import Limits, run_isolated
from models.registry import Registry
from models.roots import ROOTS
from models.signing import SIGNING_KEY, TRUSTED_KEYS
from tests.chaos.bad_models import IN_A_CHILD, MODELS, data_file, flip, save
from tests.chaos.people import MODEL, append_torn


class Served(AssertionError):
    """A bad version got past everybody."""


@dataclass(frozen=True)
class Attempt:
    """One kind of bad version.

    Attributes:
        kind: for people.
        door: how it tries to get in: publish, registry (copied there by hand, then activated) or worker (after its activation).
        slow: it needs a process of its own for seconds.
        run: tries, and gives what it was told.
    """

    kind: str
    door: str
    slow: bool
    run: Callable[[], str]


class Place:
    """A registry with a good live version, version 1, and what the gate is to ask."""

    def __init__(self, folder: Path, *, isolate: bool) -> None:
        self.folder, self.isolate = folder, isolate
        self.registry = Registry(str(folder / "registry"))
        self._tried = 0
        draw = np.random.default_rng(1)
        a, b = draw.normal(size=(2, 500))
        pq.write_table(pa.table({"a": a, "b": b, "label": ((a + b) > 0).astype(int)}), folder / "holdout.parquet")
        # Limits that a good model of this size keeps a hundred times over.
        self.config = GateConfig(
            block_rows=64,
            latency_budget_ms=20,
            load_timeout_s=15,
            load_memory_bytes=2 << 30,
            holdout=str(folder / "holdout.parquet"),
        )
        publish_checked(self.registry, MODEL, str(save(self.new())), self.config, None, run=self._run(not isolate))
        ActivationLog(self.registry.root, MODEL).activate(1, by="chaos", reason="the good one")

    def new(self) -> Path:
        self._tried += 1
        return self.folder / f"model-{self._tried}"

    def _run(self, here: bool) -> Any:
        return _here if here else run_isolated

    def publish(self, kind: str) -> str:
        path = MODELS[kind](self.new())
        run = self._run(not self.isolate and kind not in IN_A_CHILD)
        live = self.registry.versions(MODEL)
        try:
            publish_checked(self.registry, MODEL, str(path), self.config, 1, run=run)
        except ValueError as refusal:
            assert self.registry.versions(MODEL) == live, "nothing may be published"
            return str(refusal).replace(str(path), "PATH")
        finally:
            shutil.rmtree(path, ignore_errors=True)
        raise Served(kind)

    def good_copy(self) -> Path:
        """A good version, published and not yet activated."""
        manifest = self.registry.publish(MODEL, str(save(self.new(), slope=2.0)))
        return Path(self.registry.path(MODEL, manifest.version))

    def activate(self, version: int) -> str:
        """As `midstream activate`, by somebody whose process has not seen the version before."""
        registry = Registry(self.registry.root)
        try:
            check_published(registry, MODEL, version, self.config, run=self._run(not self.isolate))
            ActivationLog(registry.root, MODEL).activate(version, by="chaos", reason="a bad one")
        except ValueError as refusal:
            return str(refusal)
        raise Served(f"version {version}")


def _here(task: str, arguments: dict[str, Any], limits: Limits, keep: str) -> dict[str, Any]:
    found: dict[str, Any] = getattr(isolated_tasks, task)(**arguments, folder=keep, step=lambda name: None)
    return found


def attempts(place: Place) -> list[Attempt]:
    """Every kind, through its door."""
    published = [Attempt(kind, "publish", kind in IN_A_CHILD, lambda kind=kind: place.publish(kind)) for kind in MODELS]
    published.append(Attempt("the process dies while loading", "publish", True, lambda: _dies(place)))
    by_hand: dict[str, Callable[[], str]] = {
        "never published": lambda: place.activate(999),
        "copied without its manifest": lambda: _by_hand(place, lambda path: (path / "manifest.json").unlink()),
        "manifest cut off": lambda: _by_hand(place, lambda path: _cut(path / "manifest.json")),
        "copied under another number": lambda: _renumbered(place),
        "digest forged": lambda: _by_hand(place, _forge),
        "variables changed afterwards": lambda: _by_hand(place, lambda path: flip(data_file(path), 0.0)),
        "graph changed afterwards": lambda: _by_hand(place, lambda path: flip(path / "saved_model.pb", 0.5)),
        "graph of another model": lambda: _by_hand(place, lambda path: _other_graph(place, path)),
        "another version's variables": lambda: _by_hand(place, lambda path: _other_variables(place, path)),
        "folder is a link out of the registry": lambda: _by_hand(place, lambda path: _link_out(place, path)),
        "a file is a link out of the registry": lambda: _by_hand(place, lambda path: _link_file(place, path)),
        "model's name leads out of the registry": lambda: _told(
            lambda: place.registry.publish("../out", str(save(place.new())))
        ),
        "registry that is not allowed": lambda: _elsewhere(place),
        "not signed": lambda: _signed(place, sign=False),
        "signed by a stranger": lambda: _signed(place, stranger=True),
        "manifest changed after signing": lambda: _signed(place, change=True),
        "version live from the past on": lambda: _in_the_past(place),
        "entry of the log cut off": lambda: _torn(place),
    }
    return published + [Attempt(kind, "registry", False, run) for kind, run in by_hand.items()]


def _told(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as refusal:
        return str(refusal)
    raise Served


def _by_hand(place: Place, change: Callable[[Path], Any]) -> str:
    path = place.good_copy()
    change(path)
    try:
        return place.activate(int(path.name)).replace(str(path), "PATH")
    finally:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


def _cut(file: Path) -> None:
    file.write_text(file.read_text()[:100])


def _renumbered(place: Place) -> str:
    path = place.good_copy()
    other = path.with_name(str(int(path.name) + 100))
    shutil.copytree(path, other)
    try:
        return place.activate(int(other.name)).replace(str(other), "PATH")
    finally:
        shutil.rmtree(other)


def _forge(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["digests"]["version"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))


def _other_graph(place: Place, path: Path) -> None:
    other = save(place.new(), lambda self, a, b: {"score": self.slope * a - b, "prediction": a > 0})
    shutil.copy(other / "saved_model.pb", path / "saved_model.pb")


def _other_variables(place: Place, path: Path) -> None:
    shutil.rmtree(path / "variables")
    shutil.copytree(save(place.new(), slope=9.0) / "variables", path / "variables")


def _link_out(place: Place, path: Path) -> None:
    elsewhere = place.new()
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def _link_file(place: Place, path: Path) -> None:
    elsewhere = place.new()
    elsewhere.mkdir()
    shutil.move(path / "fingerprint.pb", elsewhere / "fingerprint.pb")
    (path / "fingerprint.pb").symlink_to(elsewhere / "fingerprint.pb")


@contextmanager
def environment(**settings: str) -> Iterator[None]:
    """Settings of this machine, for a while."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _elsewhere(place: Place) -> str:
    with environment(**{ROOTS: str(place.folder / "allowed")}):
        return _told(lambda: Registry(str(place.folder / "allowed" / ".." / "registry")))


def make_key(folder: Path, name: str) -> tuple[str, str]:
    """An Ed25519 key pair in PEM files: private, public."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key, private, public = Ed25519PrivateKey.generate(), folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


def _signed(place: Place, *, sign: bool = True, stranger: bool = False, change: bool = False) -> str:
    ours, trusted = make_key(place.folder, "ours")
    theirs, _ = make_key(place.folder, "theirs")
    with environment(**({SIGNING_KEY: theirs if stranger else ours} if sign else {})):
        path = place.good_copy()
    if change:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["metrics"] = {"accuracy": 1.0}
        (path / "manifest.json").write_text(json.dumps(manifest))
    with environment(**{TRUSTED_KEYS: trusted}):
        try:
            return place.activate(int(path.name))
        finally:
            shutil.rmtree(path)


def _in_the_past(place: Place) -> str:
    path, log = place.good_copy(), ActivationLog(place.registry.root, MODEL)
    log.seal(1_000_000, by="somebody's job")
    try:
        return _told(lambda: log.activate(int(path.name), 0, by="chaos", reason="too late"))
    finally:
        shutil.rmtree(path)


def _torn(place: Place) -> str:
    """Half of an entry for a good version; whoever reads the log is told, and nothing is served by a guess."""
    path = place.good_copy()
    torn = append_torn(place.registry.root, int(path.name))
    try:
        return _told(ActivationLog(place.registry.root, MODEL).timeline)
    finally:
        torn.file.unlink()
        shutil.rmtree(path)


def _dies(place: Place) -> str:
    """The child is killed as by a fault in foreign code, while it loads a model that would never end."""
    path = MODELS["hangs when it is loaded"](place.new())
    told: list[str] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for steps in Path(storage_root()).glob("midstream-isolated-*/steps.txt"):
                if "loading it" in steps.read_text():
                    for pid in _children():
                        os.kill(pid, signal.SIGSEGV)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        publish_checked(place.registry, MODEL, str(path), place.config, 1)
    except ValueError as refusal:
        told.append(str(refusal).replace(str(path), "PATH"))
    killer.join()
    if not told:
        raise Served
    return told[0]


def storage_root() -> str:
    """Where temporary folders are."""
    import tempfile

    return tempfile.gettempdir()


def _children() -> list[int]:
    """The isolated children of this process."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            if b"models.isolated" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def after_activation(place: Place, effective_from_us: list[int]) -> dict[str, Callable[[], str]]:
    """Versions that are activated properly, or by an entry written by hand, and then cannot be loaded by the worker.

    Args:
        place: the registry.
        effective_from_us: a boundary for each, ahead of the stream.
    """
    log = ActivationLog(place.registry.root, MODEL)

    def activated(number: int, change: Callable[[Path], Any]) -> str:
        path = place.good_copy()
        log.activate(int(path.name), effective_from_us[number], by="chaos", reason="good until then")
        change(path)
        return f"version {path.name}"

    def entry_by_hand(number: int) -> str:
        entry = Activation(len(log.entries()) + 1, MODEL, 777, effective_from_us[number], "by hand", "chaos", "2026-01-01")
        file = storage.join(place.registry.root, MODEL, "activations", f"{entry.sequence:012d}.json")
        storage.create(file, to_json(replace(entry)).encode())
        return "version 777"

    return {
        "folder deleted before its boundary": lambda: activated(0, shutil.rmtree),
        "variables damaged before its boundary": lambda: activated(1, lambda path: flip(data_file(path), 0.0)),
        "graph cut off before its boundary": lambda: activated(2, lambda path: _noise(place, path)),
        "entry of the log names a version that never was": lambda: entry_by_hand(3),
    }


def _noise(place: Place, path: Path) -> None:
    """Another graph than any that is loaded, damaged."""
    (path / "variables").rename(path / "moved")
    flip(path / "saved_model.pb", 0.5)
