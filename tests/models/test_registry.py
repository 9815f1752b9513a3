import json
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models import storage
from models.digest import DigestError, Digests, graph_digest, version_digest
from models.registry import (
    Manifest,
    PublicationConflict,
    Registry,
    RegistryError,
    Training,
    UnknownVersion,
    VersionDamaged,
)
from models.signature import Field, Signature, SignatureError
from tests.models import memory_files, saved


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return saved.save(saved.Small(), tmp_path_factory.mktemp("saved") / "small")


@pytest.fixture
def registry(tmp_path):
    return Registry(str(tmp_path / "registry"))


def bumped(key, value):
    return value if isinstance(value, bytes) else value + 1


def test_manifest_round_trip():
    signature = Signature({"x": Field("float32", (16,))}, {"p": Field("float32", (2, None))})
    plain = Manifest("m", 1, Digests("a", "b", "c"), signature)
    full = Manifest(
        "m", 2, Digests("a", "b", "c"), signature, 1, Training(-5, 7, 3), {"loss": 0.1}, "é/1", "2024-01-01T00:00:00+00:00"
    )
    for manifest in (plain, full):
        assert Manifest.from_json(manifest.to_json()) == manifest
    for text in ("", "[]", "{}", plain.to_json()[:50], json.dumps(json.loads(plain.to_json()) | {"other": 1})):
        with pytest.raises(RegistryError, match="not a manifest"):
            Manifest.from_json(text)
    with pytest.raises(RegistryError, match=r"format 2.*Update Midstream"):
        Manifest.from_json(json.dumps(json.loads(plain.to_json()) | {"format": 2}))


@pytest.mark.parametrize("where", ["local", "remote"])
def test_versions_are_numbered_and_load(where, small, tmp_path):
    memory_files.FILES.clear()
    registry = Registry(str(tmp_path / "registry") if where == "local" else "mem://bucket/registry")
    assert registry.models() == [] and registry.versions("m") == []
    first = registry.publish("m", small, metrics={"accuracy": 0.5}, publication="one")
    second = registry.publish_variables("m", 1, saved.write_like(small, bumped), training=Training(1, 2, 3), publication="two")
    assert (first.version, second.version, second.parent) == (1, 2, 1)
    assert first.digests == version_digest(small) and second.digests.graph == first.digests.graph
    assert first.signature == second.signature == Signature({"x": Field("float32", (16,))}, {"p": Field("float32", (2,))})
    assert registry.models() == ["m"] and registry.versions("m") == [1, 2]
    fresh = pickle.loads(pickle.dumps(Registry(registry.root)))
    assert [fresh.verify("m", version) for version in (1, 2)] == [first, second]
    assert fresh.find_publication("m", "two") == second and fresh.find_publication("m", "three") is None
    storage.copy_tree(registry.path("m", 2), str(tmp_path / "copy"))
    loaded = tf.saved_model.load(str(tmp_path / "copy"))
    reader = tf.train.load_checkpoint(f"{small}/variables/variables")
    weights = [reader.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE") + 1 for name in ("w1", "w2")]
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    expected = tf.nn.softmax(np.maximum(x @ weights[0], 0) @ weights[1])
    np.testing.assert_allclose(loaded.signatures["serving_default"](x=tf.constant(x))["p"], expected, rtol=1e-3)
    assert not list(Path(tmp_path).glob("registry/m/.incoming-*"))


def test_a_publication_makes_one_version(registry, small, tmp_path):
    first = registry.publish("m", small, publication="batch 7")
    other = saved.save(saved.Small(gain=2.0), tmp_path / "other")
    again = Registry(registry.root).publish("m", small, publication="batch 7")
    assert again == first and registry.versions("m") == [1]
    with pytest.raises(PublicationConflict, match="'batch 7'"):
        registry.publish("m", other, publication="batch 7")
    with pytest.raises(PublicationConflict):
        registry.publish_variables("m", 1, saved.write_like(small, bumped), publication="batch 7")
    assert registry.publish("n", other, publication="batch 7").version == 1, "another model's publications are its own"
    assert registry.versions("m") == [1]


def test_a_crash_between_the_note_and_the_version_is_made_good(registry, small, monkeypatch):
    def crash(*arguments, **options):
        raise KeyboardInterrupt

    registry.publish("m", small)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish_folder", crash)
        with pytest.raises(KeyboardInterrupt):
            registry.publish("m", small, publication="p")
    assert registry.find_publication("m", "p") is None
    registry.publish("m", small, publication="q")  # takes the number that the note of p names
    assert registry.find_publication("m", "p") is None
    assert registry.publish("m", small, publication="p").version == 3
    assert registry.find_publication("m", "p").version == 3 and registry.find_publication("m", "q").version == 2


def publish_some(root, path, name, ready):
    ready.wait()
    for number in range(5):
        Registry(root).publish("m", path, publication=f"{name} {number}")
        Registry(root).publish("m", path, publication=f"both {number}")


def test_publishers_at_once_get_numbers_of_their_own(registry, small):
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(2)
    other = spawn.Process(target=publish_some, args=(registry.root, small, "a", ready))
    other.start()
    publish_some(registry.root, small, "b", ready)
    other.join(60)
    assert other.exitcode == 0
    assert registry.versions("m") == list(range(1, 16))
    made = sorted(registry.manifest("m", version).publication for version in registry.versions("m"))
    assert made == sorted(f"{name} {number}" for name in ("a", "b", "both") for number in range(5))


def test_a_number_taken_by_hand_is_skipped(registry, small, monkeypatch):
    registry.publish("m", small)
    Path(registry.root, "m", "7").mkdir()
    for name in ("08", "x", "-3", "9.5", ".incoming-1"):
        Path(registry.root, "m", name).mkdir()
    assert registry.versions("m") == [1]
    assert registry.publish("m", small).version == 8
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_numbers", lambda self, model: [7])
        assert registry.publish("m", small).version == 9


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../x", "/abs", "a b", "a\n", "é"])
def test_model_names_cannot_leave_the_registry(registry, small, name):
    for use in (lambda: registry.publish(name, small), lambda: registry.path(name, 1), lambda: registry.versions(name)):
        with pytest.raises(RegistryError, match="cannot name a model"):
            use()


def test_what_cannot_be_published_leaves_nothing_behind(registry, small, tmp_path):
    with pytest.raises(DigestError, match="no such folder"):
        registry.publish("m", str(tmp_path / "nowhere"))
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(SignatureError, match="it has none"):
        registry.publish("m", str(tmp_path / "bare"))
    shutil.copytree(small, tmp_path / "linked")
    (tmp_path / "linked" / "assets" / "x").symlink_to("/etc/hostname")
    with pytest.raises(RegistryError, match="is a link to /etc/hostname"):
        registry.publish("m", str(tmp_path / "linked"))
    with pytest.raises(UnknownVersion, match="no model 'm'"):
        registry.publish("m", small, parent=3)
    with pytest.raises(ValueError, match="JSON"):
        registry.publish("m", small, metrics={"loss": float("nan")})
    assert registry.versions("m") == [] and not list(Path(registry.root).glob("m/.incoming-*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda key, value: None if key.startswith("w2") else value, "lack w2"),
        (lambda key, value: value[:, :1] if key.startswith("w2") else value, "'w2.*expects"),
        (lambda key, value: value.astype(np.float64) if key.startswith("w2") else value, "'w2.*float64"),
        (lambda key, value: None if key.startswith("_CHECK") else value, "copy the parent's"),
    ],
)
def test_variables_that_do_not_fit_the_graph_are_refused(registry, small, change, says):
    registry.publish("m", small)
    with pytest.raises(RegistryError, match=says):
        registry.publish_variables("m", 1, saved.write_like(small, change))
    with pytest.raises(RegistryError, match="lack"):
        registry.publish_variables("m", 1, lambda folder: None)
    with pytest.raises(UnknownVersion, match="it has 1"):
        registry.publish_variables("m", 2, saved.write_like(small))
    assert registry.versions("m") == [1]


def test_damage_is_found_and_named(registry, small):
    for _ in range(4):
        registry.publish("m", small)
    data = Path(registry.path("m", 1), "variables", "variables.data-00000-of-00001")
    content = data.read_bytes()
    data.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(VersionDamaged, match=r"m 1 at .*damaged"):
        registry.verify("m", 1)
    Path(registry.path("m", 2), "assets").mkdir()
    Path(registry.path("m", 2), "assets", "new").touch()
    with pytest.raises(VersionDamaged, match="other graph"):
        registry.verify("m", 2)
    Path(registry.path("m", 3), "manifest.json").write_text("{")
    with pytest.raises(VersionDamaged, match="not a manifest"):
        Registry(registry.root).manifest("m", 3)
    Path(registry.path("m", 4)).rename(registry.path("m", 5))
    with pytest.raises(VersionDamaged, match="manifest of m 4, not of m 5"):
        registry.manifest("m", 5)


def test_clean_removes_what_the_dead_left_a_day_ago(registry, small):
    registry.publish("m", small)
    old, new = (Path(registry.root, "m", f".incoming-{name}") for name in ("old", "new"))
    for folder in (old, new):
        (folder / "variables").mkdir(parents=True)
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    assert registry.clean() == [str(old)] and not old.exists() and new.exists()
    assert registry.versions("m") == [1] and Registry("/nowhere/at/all").clean() == []


def test_a_root_that_cannot_be_written_to_is_named(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot create .*file.*A file is where a folder is wanted"):
        Registry(str(tmp_path / "file")).publish("m", small)


def test_publishing_variables_copies_no_graph_and_lets_others_read(registry, small):
    registry.publish("m", small)
    registry.publish_variables("m", 1, saved.write_like(small))
    graphs = [Path(registry.path("m", version), "saved_model.pb") for version in (1, 2)]
    assert graphs[0].stat().st_ino == graphs[1].stat().st_ino
    assert graph_digest(registry.path("m", 2)) == registry.manifest("m", 1).digests.graph
    mask = os.umask(0)
    os.umask(mask)
    assert Path(registry.path("m", 2)).stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("name", ["models*", "models[1]", "what?"])
def test_a_root_that_tensorflow_takes_for_a_pattern_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="choose another"):
        Registry(str(tmp_path / name))
