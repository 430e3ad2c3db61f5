"""The ServerApp: the process of one round, the only process of a server that loads torch.

`mos-server serve` starts `python -m mos_server.round.app` with the round in the environment and
Flower's token on standard input, where other users of the machine cannot see it.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from queue import Queue

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from mos_common.errors import MosError, StateError
from mos_common.files import DISK_TROUBLE, could_not_write
from mos_server.round.process import end_with_server, only_process, pause_because
from mos_server.round.runner import ADDRESS, DEVICE, DTYPE, PARENT, ROUND, STATE
from mos_server.state.folder import State, open_state
from mos_server.state.journal import Journal
from mos_server.state.records import FAILED
from mos_server.tracing import exporting

log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def run_round(grid: Grid, context: Context) -> None:
    """Run the round that this process was started for; its outcome is in the journal.

    A state folder that cannot be used, such as one on a full disk, does not end the round: the
    process tells its server why it ends, and is started again.
    """
    round_id = os.environ[ROUND]
    try:
        with exporting():
            _run(grid, open_state(Path(os.environ[STATE])), round_id)
    except StateError as error:
        pause_because(str(error))
        log.error("%s pauses: %s", round_id, error)


def _run(grid: Grid, state: State, round_id: str) -> None:
    with closing(Journal(state.database)) as journal:
        try:
            from mos_common.base_model import load_base
            from mos_server.round.strategy import GradientFusion
            from mos_server.state.rekey import rekey_state

            base = load_base(state.config.base, device=os.environ.get(DEVICE), dtype=os.environ.get(DTYPE))
            state = rekey_state(state, base)
            GradientFusion(state, journal, round_id, base).start(grid)
        except StateError:
            raise
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            raise could_not_write(state.path, error) from error
        except MosError as error:
            log.error("%s: %s", round_id, error)
            with journal.decision():
                journal.notes.add(round_id, f"failed: {error}")
                journal.rounds.advance(round_id, FAILED, str(error))


def main() -> None:
    """Run the ServerApp once, as `flwr-serverapp` does but with no token in the process list."""
    from flwr.superlink.runtime import run_serverapp

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "flwr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    token = sys.stdin.readline().strip()
    end_with_server()
    try:
        state = open_state(Path(os.environ[STATE]))
        with only_process(state):
            run_serverapp(
                runtime_api_address=os.environ[ADDRESS],
                log_queue=Queue(),
                token=token,
                insecure=False,
                certificates=state.pki.trusted_here(),
                parent_pid=int(os.environ[PARENT]),
                runtime_dependency_install=False,
            )
    except StateError as error:
        pause_because(str(error))
        log.error("%s pauses: %s", os.environ[ROUND], error)


if __name__ == "__main__":
    main()
