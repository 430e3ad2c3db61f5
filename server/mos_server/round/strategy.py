"""GradientFusion: a round, as a Flower strategy.

The round itself is in `mos_server.round.engine`; `mos_server.round.flower_nodes` turns its
questions into messages.
"""

from __future__ import annotations

import logging
import reprlib
from typing import TYPE_CHECKING, NoReturn

from flwr.serverapp.strategy import Result, Strategy

from mos_common.concept_file import bytes_at_most
from mos_common.errors import RequestError
from mos_server.round.engine import RoundEngine
from mos_server.round.flower_nodes import FlowerNodes

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid

    from mos_common.base_model import Base
    from mos_server.round.exchange import Polling
    from mos_server.state.folder import State
    from mos_server.state.journal import Journal

log = logging.getLogger(__name__)

# Flower's arguments of `start` that have no effect on a round, and what to use instead.
_INSTEAD = {
    "initial_arrays": "a round starts from the base model (--base of mos-server init)",
    "num_rounds": "one call runs one round of the journal: ask for another with mos-server round",
    "timeout": "a round waits until its deadline (--deadline of mos-server round)",
    "train_config": "participants choose how they tune (--set of mos-client join)",
    "evaluate_config": "participants choose how they score; the round only limits the time (--scoring of mos-server round)",
    "evaluate_fn": "the participants score a candidate on their own pictures; the server has none",
}


class GradientFusion(Strategy):
    """A strategy that fuses the concepts of one round of the journal.

    A round asks node by node while answers arrive, and resumes where a killed server left it.
    Flower's loop, with one list of questions and one list of replies, has no place for that:
    `start` is the only way to run a round.
    """

    def __init__(
        self, state: State, journal: Journal, round_id: str, base: Base, polling: Polling | None = None
    ) -> None:
        self._engine = RoundEngine(state, journal, round_id, base, polling)
        self._concept_bytes = bytes_at_most(base)

    def start(
        self,
        grid: HttpGrid,
        initial_arrays: object = None,
        num_rounds: int = 1,
        timeout: float | None = None,
        train_config: object = None,
        evaluate_config: object = None,
        evaluate_fn: object = None,
    ) -> Result:
        """Run the round to its end among the nodes of `grid`.

        The other arguments are Flower's; they would have no effect and are refused.

        Raises:
            RequestError: another argument was given.
            MosError: the round cannot be completed; the journal says how far it got.

        """
        arguments = {
            "initial_arrays": initial_arrays,
            "num_rounds": None if num_rounds == 1 else num_rounds,
            "timeout": timeout,
            "train_config": train_config,
            "evaluate_config": evaluate_config,
            "evaluate_fn": evaluate_fn,
        }
        wrong = [
            f"{name}={reprlib.repr(value)} ({_INSTEAD[name]})" for name, value in arguments.items() if value is not None
        ]
        if wrong:
            raise RequestError(
                f"GradientFusion.start: these arguments have no effect on a round: {'; '.join(wrong)}. Leave them out"
            )
        self._engine.run(FlowerNodes(grid, self._engine.reading, concept_bytes=self._concept_bytes))
        return Result()

    def summary(self) -> None:
        """Log what the round is waiting for, or what it goes on with."""
        log.info("%s", self._engine.summary())

    def _refuse_single_step(self, *_: object, **__: object) -> NoReturn:
        raise RequestError("GradientFusion runs a round as a whole: call its start(grid), not the single steps")

    configure_train = aggregate_train = configure_evaluate = aggregate_evaluate = _refuse_single_step
