"""The JVM parts: which jars there are, where they lie, and whether they are what they should be.

Each folder under `runners/jvm/` is a Maven project whose dependencies are one engine. `make engines` has Maven copy them into
`$MIDSTREAM_ENGINES/NAME/` (`~/.cache/midstream/engines` if that is not set) and checks every jar by its SHA-256 in
`runners/jvm/jars.lock`; so does every start. In a closed network, copy that folder from a machine that has it, and set
`MIDSTREAM_ENGINES` to it: nothing is fetched then. After a change of a pom, `python -m runners.engines --lock` fetches anew and
writes the lock; look at the difference before you commit it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAMES = ("kafka", "flink", "flink-cluster", "spark", "spark-cluster")
PRISM_VERSION = "v2.77.0"  # that of Beam in setup.py
_PRISM = f"github.com/apache/beam/sdks/v2/go/cmd/prism@{PRISM_VERSION}"
_POMS = Path(__file__).parent / "jvm"
_LOCK = _POMS / "jars.lock"
# What Flink and Spark reach into on Java 17.
_OPENED = [
    "java.util",
    "java.lang",
    "java.nio",
    "sun.nio.ch",
    "java.lang.invoke",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "java.net",
    "java.io",
    "sun.security.action",
    "sun.nio.cs",
    "sun.util.calendar",
]
OPENS = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
LOGGING = [
    f"-Dlog4j2.configurationFile={_POMS / 'log4j2.properties'}",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.log.org.apache.beam.runners.flink.FlinkPipelineRunner=warn",  # all metrics, as text, per job
]


class EngineError(Exception):
    """An engine that cannot be had or started; says what to do."""


def root() -> Path:
    """Where the engines lie."""
    return Path(os.environ.get("MIDSTREAM_ENGINES") or Path.home() / ".cache" / "midstream" / "engines").absolute()


def jars(*names: str) -> str:
    """The class path of engines, in this order.

    Raises:
        EngineError: a jar is missing and cannot be fetched, or is another one than expected.
    """
    return ":".join(f"{folder(name)}/*" for name in names)


def folder(name: str) -> Path:
    """The folder with the jars of an engine, checked; fetched if they are not there.

    Raises:
        EngineError: as `jars`.
    """
    place = root() / name
    if _fault(name, place) is None:
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # another process may be fetching them
        if _fault(name, place) is not None:
            _fetch(name, place)
        if fault := _fault(name, place):
            raise EngineError(
                f"{fault}. Delete {place} and say `make engines`; if it happens again, Maven delivers something else than was "
                f"tested ({_LOCK.name})"
            )
    return place


def java() -> str:
    """The `java` to start engines with.

    Raises:
        EngineError: there is none, or none that the engines run on.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    wanted = "Flink, Spark and Kafka need Java 17: install it (Debian: apt install openjdk-17-jre-headless) or set JAVA_HOME"
    if found is None:
        raise EngineError(f"there is no java{f' in JAVA_HOME={home}' if home else ' in PATH'}. {wanted}")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = said.partition('version "')[2].partition(".")[0].partition('"')[0]
    if version != "17":
        raise EngineError(f"{found} is Java {version or '(unknown)'}. {wanted}")
    return found


def prism() -> str:
    """Beam's Prism, built from its source if it is not there.

    Raises:
        EngineError: it is not there, and there is no Go to build it with.
    """
    place = root() / f"prism-{PRISM_VERSION}"
    if place.exists():
        return str(place)
    go = shutil.which("go")
    if go is None:
        raise EngineError(
            f"Prism is not in {root()}, and there is no Go to build it with: install Go 1.25 or newer, or put there, as "
            f"{place.name}, what `go install {_PRISM}` builds"
        )
    print("building Prism, which takes some 4 minutes", file=sys.stderr)
    root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root()) as scratch:
        built = subprocess.run(
            [go, "install", _PRISM],
            env=os.environ | {"GOBIN": scratch},
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise EngineError(f"Prism could not be built: {_tail(built.stderr)}")
        (Path(scratch) / "prism").rename(place)
    return str(place)


def _fetch(name: str, place: Path, *, check: bool = True) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise EngineError(
            f"the jars of {name} are not in {place}, and there is no Maven to fetch them with: install it (Debian: apt install "
            "maven), or copy the folder from a machine that has it and set MIDSTREAM_ENGINES to the folder above it"
        )
    print(f"fetching the jars of {name} into {place}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        command = [maven, "-q", "-B", "-f", str(_POMS / name / "pom.xml"), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={scratch}/jars"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(f"Maven could not fetch the jars of {name}: {_tail(done.stdout + done.stderr)}")
        if check and (fault := _fault(name, Path(scratch) / "jars")):
            raise EngineError(f"Maven delivered something else than was tested: {fault} ({_LOCK})")
        if place.exists():
            shutil.rmtree(place)
        (Path(scratch) / "jars").rename(place)


def _fault(name: str, place: Path) -> str | None:
    """What is wrong with the jars in a folder; None if they are those of the lock."""
    if name not in NAMES:
        raise ValueError(f"expected one of {', '.join(NAMES)}, got {name!r}")
    if not place.is_dir():
        return f"{place} is missing"
    lines = [line.split("  ") for line in _LOCK.read_text().splitlines()]
    wanted = {file.removeprefix(f"{name}/"): digest for digest, file in lines if file.startswith(f"{name}/")}
    found = _digests(place)
    for file in sorted(wanted.keys() | found.keys()):
        if file not in found:
            return f"{place}/{file} is missing"
        if file not in wanted:
            return f"{place}/{file} is not in {_LOCK.name}"
        if wanted[file] != found[file]:
            return f"{place}/{file} has SHA-256 {found[file]}, expected {wanted[file]}"
    return None


def _digests(place: Path) -> dict[str, str]:
    files = sorted(place.glob("*.jar"))
    with ThreadPoolExecutor() as pool:
        return dict(zip((file.name for file in files), pool.map(_digest, files), strict=True))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-12:])


def _write_lock() -> None:
    lines = []
    for name in NAMES:
        place = root() / name
        place.parent.mkdir(parents=True, exist_ok=True)
        _fetch(name, place, check=False)
        lines += [f"{digest}  {name}/{file}" for file, digest in _digests(place).items()]
    _LOCK.write_text("".join(f"{line}\n" for line in sorted(lines, key=lambda line: line.split("  ")[1])))


def main(arguments: Sequence[str]) -> None:
    """Fetches what is named, or everything; `--lock` writes the lock anew."""
    try:
        if "--lock" in arguments:
            _write_lock()
        java()
        for name in arguments or (*NAMES, "prism"):
            if name != "--lock":
                print(prism() if name == "prism" else folder(name))
    except EngineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
