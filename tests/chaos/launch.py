"""The command line, in a process that dies of SIGKILL at the moment it opens a certain file.

    python -m tests.chaos.launch PART ARGS ...

PART is a part of the file's path; when it is opened for the second time, the process is killed (the manifest comes first, which
anybody may read).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def die_at(part: str, times: int = 2) -> None:
    """Kills this process when files whose path holds `part` are opened for so many times."""
    opened = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal opened
        if event == "open" and part in str(args[0]) and "gate.json" not in str(args[0]):
            opened += 1
            if opened == times:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    die_at(sys.argv[1])
    del sys.argv[1]
    from pipelines.cli import main

    main()
