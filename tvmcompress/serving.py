"""A board's side of `device`: TVM's RPC server that also says what the board can do.

    python -m tvmcompress.serving --host 0.0.0.0 --port 9090

Whoever reaches the port runs code on the board, so it is open to this machine alone unless `--host` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import threading

import tvm_ffi
from tvm.rpc.server import PopenRPCServerState

from tvmcompress import cpu
from tvmcompress.device import DESCRIBE


def start(host: str = "127.0.0.1", port: int = 9090, tracker: tuple[str, int] | None = None, key: str = "") -> int:
    """Serves in a thread of this process, each session in a process of its own; the port (the first that is free)."""
    tvm_ffi.register_global_func(DESCRIBE, lambda: json.dumps(cpu.describe()), override=True)
    return PopenRPCServerState(host, port, port + 100, tracker_addr=tracker, key=key, silent=True).port


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve this board to tvmcompress.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=9090, help="the first port to try (default: 9090)")
    parser.add_argument("--tracker", help="host:port of a tracker to register with")
    parser.add_argument("--key", default="", help="the board's name at the tracker")
    options = parser.parse_args()
    host, _, port = (options.tracker or "").rpartition(":")
    tracker = (host, int(port)) if host else None
    print(f"listening on {options.host}:{start(options.host, options.port, tracker, options.key)}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
