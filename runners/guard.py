"""Ends what a process started, and deletes its scratch folders, should the process itself be killed.

Started by `runners.processes` with a pipe as its input: lines `+group PGID`, `-group PGID`, `+folder PATH`, `-folder PATH`. The
pipe closes when the process behind it is gone, however it went; what is still on the list then goes, too. (The kernel's own
PR_SET_PDEATHSIG looks at the thread that started a child, not at the process, and knows no folders.)

Runs by itself, without the rest of Midstream: it must be small and start at once.
"""

import os
import shutil
import signal
import sys
import time

GRACE_S = 3.0  # between SIGTERM and SIGKILL


def end_groups(groups: list[int], grace_s: float = GRACE_S) -> None:
    """Ends process groups: asks first, and does not ask twice."""
    alive = [group for group in groups if _send(group, signal.SIGTERM)]
    deadline = time.monotonic() + grace_s
    while alive and time.monotonic() < deadline:
        time.sleep(0.02)
        alive = [group for group in alive if _send(group, 0)]
    for group in alive:
        _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    """Whether the group is there. One that only holds dead processes nobody waited for is not."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return any(_alive(member) for member in _members(group))


def _members(group: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208  this file imports little, on purpose
        try:
            if entry.isdigit() and os.getpgid(int(entry)) == group:
                found.append(int(entry))
        except ProcessLookupError:
            continue
    return found


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    """Listens until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: list[int] = []
    folders: list[str] = []
    for line in sys.stdin:
        what, _, value = line.rstrip("\n").partition(" ")
        if what == "+group":
            groups.append(int(value))
        elif what == "-group" and int(value) in groups:
            groups.remove(int(value))
        elif what == "+folder":
            folders.append(value)
        elif what == "-folder" and value in folders:
            folders.remove(value)
    end_groups(groups)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
