"""Run the *installed* ClientApp, and nothing else, on tasks from the local SuperNode.

Flower's own executor unpacks the bundle that came over the wire and imports from it. Here the
bundle is neither written nor imported: its digest is compared with that of the installed release,
so that incompatible releases are noticed. Errors are logged here; the operator receives only the
kind of error, never a text with paths.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mos_common.errors import MosError
from mos_common.flower_app import build_app, silence_flower
from mos_common.outage import Outage

log = logging.getLogger(__name__)
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_PAUSE_S = 0.5
_SUPERNODE_STARTS_WITHIN_S = 60.0


class Executor:
    """A participant's executor; `address` returns the SuperNode's, `app` is the installed app."""

    def __init__(self, address: Callable[[], str], secret_file: Path, app: Callable[..., Any]) -> None:
        silence_flower()
        self._address, self._secret_file, self._app = address, secret_file, app
        self._bundle_digest = build_app()[1]
        self._stopped_taking = Outage(lambda line: log.error("%s", line))
        # The SuperNode needs some seconds to start, and again after every lost connection.
        self._silent = Outage(lambda line: log.warning("%s", line), patience_s=_SUPERNODE_STARTS_WITHIN_S)

    def run(self, stop: threading.Event, ready: Callable[[], bool]) -> None:
        """Work until `stop`; `ready` keeps the SuperNode running and returns whether it is."""
        while not stop.is_set():
            try:
                busy = ready() and self.take_task()
                self._stopped_taking.over("requests can be taken again")
            except Exception as error:  # else it would end this thread silently
                news = self._stopped_taking.report(f"cannot take requests at the moment: {error}")
                if news and not isinstance(error, MosError):
                    log.error("it is none of the errors that are foreseen", exc_info=True)
                busy = False
            if not busy:
                stop.wait(_PAUSE_S)

    def take_task(self) -> bool:
        """Take a task and run it; return False if there was none."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.auth import load_superexec_auth_secret
        from flwr.supercore.constant import TaskType
        from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor

        try:
            secret = load_superexec_auth_secret(secret_file=str(self._secret_file))
            client = self._client(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE))
            try:
                task = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
            finally:
                client.close()
        except Exception as error:  # the SuperNode is starting or has just ended
            self._silent.report(
                f"the SuperNode on this machine does not answer ({type(error).__name__}): no request can arrive, "
                f"trying again every {_PAUSE_S:g} s; its log is in {self._secret_file.with_name('log')}"
            )
            return False
        self._silent.over("the SuperNode on this machine answers again")
        if not (task.HasField("task") and task.token):
            return False
        self._do(task.token)
        return True

    def _do(self, token: str) -> None:
        from flwr.supercore.heartbeat import HeartbeatSender
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
        from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

        client = self._client(RuntimeTokenHttpInterceptor(token))
        heartbeat = HeartbeatSender(_heartbeat_of(client))
        heartbeat.start()
        try:
            message, context, run, bundle = pull_task_input(client)
            reply, status, details = self._reply(message, context, run.fab_hash, bundle.content)
            push_message(client, reply, context)
            push_task_output(client, context, status, details)
        except Exception as error:
            log.error("an answer could not be given to the SuperNode: %s", type(error).__name__)
        finally:
            heartbeat.stop()
            client.close()

    def _reply(self, message: Any, context: Any, run_digest: str, bundle: bytes) -> tuple[Any, str, str]:
        from flwr.app import Error, Message
        from flwr.common.constant import ErrorCode, SubStatus

        if not hashlib.sha256(bundle).hexdigest() == run_digest == self._bundle_digest:
            log.error("refused: the operator's app is not that of this installed release; nothing of it was unpacked")
            return (
                Message(Error(ErrorCode.INVALID_FAB, "not the installed release"), reply_to=message),
                SubStatus.FAILED,
                "refused",
            )
        try:
            return self._app(message=message, context=context), SubStatus.COMPLETED, ""
        except Exception as error:
            log.error("the request failed: %s", error, exc_info=not isinstance(error, MosError))
            kind = type(error).__name__
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, kind), reply_to=message), SubStatus.FAILED, kind

    def _client(self, interceptor: Any) -> Any:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        # No retry invoker: Flower's sends this very process a SIGINT when a token has expired.
        return RuntimeHttpClient.from_server_address(
            server_address=self._address(),
            insecure=True,  # loopback; the secret and the token protect it
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="mos-client"), interceptor],
        )


def _heartbeat_of(client: Any) -> Callable[[], bool]:
    """Return a heartbeat for the SuperNode's task, which returns False if it was refused.

    Flower's own sends this process a SIGINT when the task was given up, as after a machine has
    slept, and its thread dies of a refusal.
    """
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

    def beat() -> bool:
        try:
            return bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except Exception as error:
            log.debug("no heartbeat: %s", type(error).__name__)
            return False

    return beat
