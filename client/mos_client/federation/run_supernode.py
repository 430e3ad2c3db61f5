"""Run Flower's SuperNode in this process, and end when any part of it has, or the parent has.

Flower's own command lives on when it is of no use any more. It gives its connection up when a TLS
handshake fails, as on a line that is cut: its main thread ends, the thread of its local port does
not, and nobody asks the server for messages. A status that its heartbeat does not expect ends the
thread of the heartbeat alone: the server takes it for offline, and asks it nothing. And where a run
ends while its message arrives, the task stays: the executor takes it and waits hours for the rest.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have this process terminated when its parent dies, where the system can do that.

    Where prctl is missing, a killed parent leaves the SuperNode running.
    """
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    except (ImportError, OSError, AttributeError, TypeError):
        pass


def run_to_its_end(command: Callable[[], object]) -> None:
    """Run a command in the main thread; end the process with it, or with a thread that fails."""
    report = threading.excepthook

    def failed(args: threading.ExceptHookArgs) -> None:
        report(args)
        _end(1)

    threading.excepthook = failed
    code = 1  # a SuperNode that returns has given up
    try:
        command()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    _end(code)


def drop_messages_of_ended_runs() -> None:
    """Let a message whose run ends while it arrives be dropped, and its task end as failed."""
    from flwr.supercore.run import RunNotRunningException
    from flwr.supernode import start_client_internal as supernode

    pull_objects = supernode.pull_objects

    def pull_or_fail(*args: Any, **kwargs: Any) -> Any:
        try:
            return pull_objects(*args, **kwargs)
        except RunNotRunningException as error:  # no Exception: nobody would tidy up
            raise ConnectionError("the run has ended") from error

    supernode.pull_objects = pull_or_fail


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # other threads would go on


if __name__ == "__main__":
    end_with_parent()
    from flwr.supernode.cli import flower_supernode

    drop_messages_of_ended_runs()
    run_to_its_end(flower_supernode)
