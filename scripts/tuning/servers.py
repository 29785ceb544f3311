"""Boards for the benchmark, each a process with the server alone, as on a board: `python -m scripts.tuning.servers
COUNT PAUSE`. Prints their addresses in one line, and serves until it is killed; every session begins with the pause."""

from __future__ import annotations

import os
import signal
import sys
import time

from tvmcompress import process
from tvmcompress.serving import listener, watchdog


def main(count: int, pause: float) -> None:
    found, cpus = [], sorted(os.sched_getaffinity(0))
    for number in range(count):
        listening = watchdog.bound("127.0.0.1", 0)
        found.append(f"127.0.0.1:{listening.getsockname()[1]}")
        if os.fork() == 0:
            process.die_with_parent()
            os.sched_setaffinity(0, {cpus[number % len(cpus)]})
            listener.run(listening, before=lambda: time.sleep(pause))
            os._exit(0)
        listening.close()
    print(*found, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
