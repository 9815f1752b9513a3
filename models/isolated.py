"""The child of `models.isolation`: sets its own limits, does one task, writes down what it gave.

python -m models.isolated FOLDER      FOLDER/order.json says what to do
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.isolation import OUT_OF_MEMORY, RESULT, STEPS

Step = Callable[[str], None]


def main() -> None:
    """Does what the order says."""
    folder = Path(sys.argv[1])
    order = json.loads((folder / "order.json").read_text())
    limits = order["limits"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(limits["nice"])

    def step(name: str) -> None:
        with (folder / STEPS).open("a") as file:
            file.write(f"{name}\n")

    step("importing TensorFlow")
    import tensorflow  # noqa: F401

    from models import isolated_tasks

    # Death by signal, which no handler in foreign code can put off; it also ends a child whose parent is gone.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits["seconds"])
    taken = _address_space_bytes() + limits["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (taken, taken))
    try:
        given: dict[str, Any] = getattr(isolated_tasks, order["task"])(**order["arguments"], folder=order["folder"], step=step)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    temporary = folder / f".{RESULT}"
    temporary.write_text(json.dumps(given))
    temporary.rename(folder / RESULT)
    sys.stderr.flush()
    os._exit(0)  # threads of foreign code are not waited for


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
