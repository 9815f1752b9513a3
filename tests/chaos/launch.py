"""The command line, in a process that dies of SIGKILL while it loads a certain version.

python -m tests.chaos.launch VERSION ARGS ...
"""

from __future__ import annotations

import os
import signal
import sys


def die_loading(version: int) -> None:
    """Kills this process when it has read a version's manifest and begins with its variables."""
    from models import serving

    digest = serving.variables_digest

    def deadly(path: str) -> str:
        if path.endswith(f"/{version}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return digest(path)

    serving.variables_digest = deadly


if __name__ == "__main__":
    die_loading(int(sys.argv[1]))
    del sys.argv[1]
    from pipelines.cli import main

    main()
