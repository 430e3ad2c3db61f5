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

from mos_common.errors import MosError
from mos_server.round.runner import ADDRESS, DEVICE, DTYPE, PARENT, ROUND, STATE
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_server.state.records import FAILED

log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def run_round(grid: Grid, context: Context) -> None:
    """Run the round that this process was started for; its outcome is in the journal."""
    state, round_id = open_state(Path(os.environ[STATE])), os.environ[ROUND]
    with closing(Journal(state.database)) as journal:
        try:
            from mos_common.base_model import load_base
            from mos_server.round.strategy import GradientFusion
            from mos_server.state.rekey import rekey_state

            base = load_base(state.config.base, device=os.environ.get(DEVICE), dtype=os.environ.get(DTYPE))
            state = rekey_state(state, base)
            GradientFusion(state, journal, round_id, base).start(grid)
        except MosError as error:
            log.error("%s: %s", round_id, error)
            journal.notes.add(round_id, f"failed: {error}")
            journal.rounds.advance(round_id, FAILED, str(error))


def main() -> None:
    """Run the ServerApp once, as `flwr-serverapp` does but with no token in the process list."""
    from flwr.superlink.runtime import run_serverapp

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "flwr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    token = sys.stdin.readline().strip()
    state = open_state(Path(os.environ[STATE]))
    run_serverapp(
        runtime_api_address=os.environ[ADDRESS],
        log_queue=Queue(),
        token=token,
        insecure=False,
        certificates=state.pki.authority.read_bytes(),
        parent_pid=int(os.environ[PARENT]),
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main()
