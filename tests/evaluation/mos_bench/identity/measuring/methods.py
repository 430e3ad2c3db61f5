"""The fusion methods that are compared, each with its best λ.

`average` is FedAvg with 1/n. Methods that are linear in a factor λ (the scaled sum, TIES, DARE,
Iso-C, TSV-M) get the λ with the highest image alignment on dev concepts at the same n, with the
same prompts and seeds. SSR-Merge and LoRACLR have none, and run with their published settings.
`gradient-paper` is L-BFGS with the paper's stops and inputs; `gradient` is ours with its defaults,
`faithful` with the other preset, and `own` is the model of `gradient` with each concept's own
spatial changes beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mos_common.settings import changed, parse_settings
from mos_server.fusion.methods.average import AverageSettings
from mos_server.fusion.methods.custom_diffusion import CustomDiffusionSettings
from mos_server.fusion.methods.dare import DareSettings
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.methods.iso_c import IsoCSettings
from mos_server.fusion.methods.lbfgs import LbfgsSettings
from mos_server.fusion.methods.loraclr import LoraclrSettings
from mos_server.fusion.methods.method import MethodSettings
from mos_server.fusion.methods.ssr_merge import SsrMergeSettings
from mos_server.fusion.methods.sum import SumSettings
from mos_server.fusion.methods.ties import TiesSettings
from mos_server.fusion.methods.tsv_m import TsvMSettings


@dataclass(frozen=True)
class Method:
    """A fusion method; `grid` holds the candidates for λ, if it has one.

    With `own`, each concept is drawn by its own spatial changes, and by the fused text encoder,
    keys and values.
    """

    name: str
    settings: MethodSettings
    grid: tuple[float, ...] = ()
    own: bool = False

    def scales(self, n: int) -> tuple[float, ...]:
        """Return the λ to try with n concepts; the scaled sum always includes the average, 1/n."""
        if self.settings.method != "sum":
            return self.grid
        return tuple(sorted({*self.grid, round(1 / n, 4)}))

    def changed(self, texts: Sequence[str]) -> Method:
        """Return gradient fusion with the settings of `--set`; any other method unchanged.

        Raises:
            RequestError: it has no such setting, or a value is not of its type or range.

        """
        if self.settings.method != "gradient" or not texts:
            return self
        return replace(self, settings=changed(self.settings, parse_settings(type(self.settings), texts)))


AVERAGE = Method("average", AverageSettings())
SUM_TUNED = Method("sum-tuned", SumSettings(sum_weight=1.0), (0.05, 0.1, 0.18, 0.3, 0.45, 0.65, 0.9, 1.2))
TIES = Method("ties", TiesSettings(sum_weight=1.0), (0.2, 0.4, 0.8, 1.5, 2.5))
DARE = Method("dare", DareSettings(sum_weight=1.0), (0.04, 0.08, 0.18, 0.35, 0.65, 1.0))
CUSTOM_DIFFUSION = Method("custom-diffusion", CustomDiffusionSettings())
GRADIENT_PAPER = Method("gradient-paper", LbfgsSettings())
GRADIENT = Method("gradient", GradientSettings())
FAITHFUL = Method("faithful", GradientSettings(preset="faithful"))
OWN = Method("own", GradientSettings(), own=True)
RIVALS = (
    Method("iso-c", IsoCSettings(), (0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.5)),
    Method("tsv-m", TsvMSettings(), (0.1, 0.2, 0.35, 0.6, 1.0, 1.5)),
    Method("ssr-merge", SsrMergeSettings()),
    Method("loraclr", LoraclrSettings()),
)
CURVE = (AVERAGE, SUM_TUNED, TIES, DARE, *RIVALS, GRADIENT_PAPER, FAITHFUL, OWN, GRADIENT)
