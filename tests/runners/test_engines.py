"""Jars are those of the lock, or the start is refused with what to do."""

import shutil
from pathlib import Path

import pytest

from runners import engines


def test_the_jars_are_those_of_the_lock() -> None:
    for name in engines.NAMES:
        assert any(engines.folder(name).glob("*.jar"))
    lines = (Path(engines.__file__).parent / "jvm" / "jars.lock").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == sorted(line.split("  ")[1] for line in lines)


@pytest.mark.parametrize("fault", ["changed", "missing", "added"])
def test_another_jar_is_refused(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = engines.folder("kafka")
    shutil.copytree(kafka, tmp_path / "kafka")
    monkeypatch.setenv("MIDSTREAM_ENGINES", str(tmp_path))
    assert engines.folder("kafka") == tmp_path / "kafka"  # found in a folder that the user names; nothing is fetched
    jar = next((tmp_path / "kafka").glob("kafka_*.jar"))
    if fault == "changed":
        jar.write_bytes(jar.read_bytes() + b"x")
    elif fault == "missing":
        jar.unlink()
    else:
        shutil.copy(jar, jar.with_name("extra.jar"))
    monkeypatch.setenv("PATH", str(tmp_path))  # without Maven it cannot be put right
    with pytest.raises(engines.EngineError, match="no Maven to fetch them with: install it"):
        engines.folder("kafka")


def test_java_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "java"
    fake.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(engines.EngineError, match=r"is Java 1\. .*need Java 17"):
        engines.java()
