"""What the page is of: one served state folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mos_server.monitoring.health import Health
from mos_server.monitoring.readings import Sizes
from mos_server.state.folder import State
from mos_server.state.journal import Journal

if TYPE_CHECKING:
    from mos_server.page.children import Children


@dataclass(frozen=True)
class Federation:
    """A served state folder, and what the page needs to show it and to act on it."""

    served: State
    journal: Journal
    health: Health
    children: Children
    sizes: Sizes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", Sizes(self.served))

    @property
    def state(self) -> State:
        """The state folder as it is now: commands change its settings while a server runs."""
        return State(self.served.path)
