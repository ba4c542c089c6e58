"""A small service in the test's own process, at an address of its own."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def served(application: Any, port: int = 0) -> Iterator[str]:
    """The address at which an application answers while the block runs."""
    with socket.create_server(("127.0.0.1", port)) as bound:
        # Without uvicorn's own logging, which closes what other libraries log into: absl's handler
        # has taken pytest's standard error.
        settings = uvicorn.Config(application, log_config=None, timeout_graceful_shutdown=0)
        runner = uvicorn.Server(settings)
        thread = threading.Thread(target=runner.run, args=([bound],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            runner.should_exit = True
            thread.join()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return bound.getsockname()[1]
