"""What a picture of several shows, by the likeness of its parts to every fused concept.

    recognised   the part where a concept was asked for is more like it than like any other of n
    all          every part of the picture is recognised
    collapse     two parts are recognised as one and the same concept, asked for or not
    confusion    of all ways to give each part one of the picture's concepts, each concept once, the
                 best in total likeness is not the one that was asked for

Collapse is what people see as the same subject drawn twice. It is asked of the recogniser and not
of the cosine of the two parts, since the parts of one picture share place and style, so that any
threshold on their cosine would measure those as well. Confusion leaves out everybody who is not in
the picture: it says whether the asked are exchanged, even where nobody is recognised among n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from mos_bench.identity.measuring.statistics import Interval, share


@dataclass(frozen=True)
class Judged:
    """One picture: who was asked for, who each part was taken for, and the best assignment.

    `assigned[k]` is the number of the asked concept that is given to part k.
    """

    asked: tuple[str, ...]
    seen: tuple[str, ...]
    assigned: tuple[int, ...]

    @property
    def right(self) -> list[bool]:
        """Return whether each part is recognised."""
        return [seen == asked for seen, asked in zip(self.seen, self.asked, strict=True)]

    @property
    def collapsed(self) -> bool:
        """Return whether two parts are recognised as the same concept."""
        return len(set(self.seen)) < len(self.seen)

    @property
    def confused(self) -> bool:
        """Return whether the best assignment is another than the one asked for."""
        return self.assigned != tuple(range(len(self.asked)))


def judged(asked: Sequence[str], likeness: Float[np.ndarray, "parts known"], known: Sequence[str]) -> Judged:
    """Judge one picture by the likeness of its parts to all known concepts, in their order."""
    seen = tuple(known[int(k)] for k in likeness.argmax(axis=1))
    among = likeness[:, [list(known).index(name) for name in asked]]
    _, assigned = linear_sum_assignment(among, maximize=True)
    return Judged(tuple(asked), seen, tuple(int(k) for k in assigned))


@dataclass(frozen=True)
class Row:
    """The pictures of one layout drawn in one way, judged."""

    layout: str
    way: str
    pictures: tuple[Judged, ...]

    @property
    def recognised(self) -> Interval:
        """The share of subjects that are recognised in their parts."""
        return _share([right for each in self.pictures for right in each.right])

    @property
    def all_in(self) -> Interval:
        """The share of pictures in which every subject is recognised."""
        return _share([all(each.right) for each in self.pictures])

    @property
    def collapsed(self) -> Interval:
        """The share of pictures that show one concept twice."""
        return _share([each.collapsed for each in self.pictures])

    @property
    def confused(self) -> Interval:
        """The share of pictures whose best assignment is not the asked one."""
        return _share([each.confused for each in self.pictures])

    def of(self, names: set[str]) -> Row:
        """Return its pictures of these concepts alone."""
        return Row(self.layout, self.way, tuple(each for each in self.pictures if names.issuperset(each.asked)))


def _share(hits: Sequence[bool]) -> Interval:
    """Return the share of hits with Wilson's 95 % interval, each hit counted as independent."""
    return share(np.array(hits, float)[:, None])


@dataclass(frozen=True)
class Gate:
    """A goal for one layout: what was reached, what is needed, and the best of the fused model."""

    layout: str
    goal: str
    needed: float
    reached: Interval
    by_fused: Interval

    @property
    def verdict(self) -> str:
        """Return whether the share itself reaches what is needed, whatever its interval."""
        return "reached" if self.reached.mean >= self.needed else "missed"


EACH, ALL = 0.95, 0.9


def gates(alone: Row, own: Row, fused: Sequence[Row]) -> list[Gate]:
    """Return the two goals of a layout drawn with own changes in regions.

    With a the share in which the layout's concepts are recognised when each is drawn alone by its
    own model, and k concepts in a picture:

        each subject    at least .95 · a
        all of them     at least .9 · a^k
    """
    a = alone.of({name for each in own.pictures for name in each.asked}).recognised.mean
    k = len(own.pictures[0].asked)
    best = [max((getattr(row, of) for row in fused), key=lambda found: found.mean) for of in ("recognised", "all_in")]
    return [
        Gate(own.layout, f"each at least {EACH} of alone ({a:.3f})", EACH * a, own.recognised, best[0]),
        Gate(own.layout, f"all {k} at least {ALL} of alone ^ {k}", ALL * a**k, own.all_in, best[1]),
    ]
