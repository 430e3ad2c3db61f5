"""The second moments of every concept, recorded once and kept, so that joins and leaves are cheap.

They are kept in one folder. A file is named by the concept's content digest, by which `concepts
withdraw` erases it, and by a key of everything else that they depend on: base, number format,
prompts, sampling, attached changes. Nothing that the key leaves out may change them, in particular
not the other concepts of the round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import words_of
from mos_common.concept_file import content_digest
from mos_common.digests import digest_of_code, digest_of_json, digest_of_tensors
from mos_common.edlora import LowRank, attached
from mos_common.errors import FusionError, StateError
from mos_common.files import canonical_json, could_not_write
from mos_common.fingerprint import sampler_of
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group, Layer
from mos_common.progress import TextProgress
from mos_common.prompts import about
from mos_common.words import Vocabulary
from mos_server.fusion.activations import Sink, record_group
from mos_server.fusion.moments import Moments, read_mean, read_moments, write_moments
from mos_server.fusion.recording_settings import RecordingSettings

log = logging.getLogger(__name__)
Recorded = tuple["Recording", "Moments | UnusableConceptError"]
Mean = Callable[[str], Float[Tensor, "d_in d_in"]]
Recorder = Callable[[Sequence["Recording"]], Iterator[Recorded]]
# The code that decides what is recorded: when it changes, kept moments are recorded again.
RECORDED_BY = (
    *(
        f"mos_common.{name}"
        for name in [
            "attention",
            "base_loading",
            "base_model",
            "concept",
            "conditioning",
            "drawing",
            "edlora",
            "layers",
            "prompt_names",
            "prompts",
            "regions",
            "samplers",
            "shapes",
            "words",
        ]
    ),
    *(f"mos_server.fusion.{name}" for name in ["activations", "gram", "moments", "row_sink", "statistics"]),
)
# The recording settings that do not change a group's moments; every other one is part of their key.
# The prompts are in it as those of one recording.
NOT_READ = {
    Group.TEXT: {"contexts", "ordinary", "steps", "guidance", "batch"},
    Group.CROSS: {"contexts", "ordinary", "steps", "guidance", "batch"},
    Group.SPATIAL: {"contexts", "ordinary", "rows"},
}


class UnusableConceptError(FusionError):
    """A concept whose forward pass is not finite: it cannot be fused, the others can."""

    def __init__(self, token: str, reason: str) -> None:
        super().__init__(f"concept {token}: {reason}")
        self.token, self.reason = token, reason


@dataclass(frozen=True)
class Recording:
    """One recording: a concept, one group of layers, and the changes attached to the base for it.

    Without a concept (None) it is of ordinary prompts on the base. `reads` are the inputs needed; a
    recording of more inputs serves too.
    """

    group: Group
    named: NamedConcept | None
    attached: Mapping[str, LowRank]
    reads: frozenset[str]
    settings: RecordingSettings

    @property
    def token(self) -> str:
        """The concept's token, for messages."""
        return self.named.token if self.named else "ordinary prompts"

    def file_name(self, base: Base) -> str:
        """Return a name made of the concept and everything that its moments depend on.

        `reads` is left out, since the moments of one input do not depend on other inputs.
        """
        settings, concept = self.settings, self.named.concept if self.named else None
        made_by: dict[str, object] = {
            "code": digest_of_code(RECORDED_BY),
            "base": base.fingerprint,
            "number format": str(base.dtype),
            "group": self.group.name,
            "prompts": settings.contexts if concept else settings.ordinary,
            "subject": concept.trigger or concept.class_word if concept and not concept.words else None,
            "attached": self._attached_digest,
            "zeros": base.force_zeros_for_empty_prompt,
        }
        values = {each.name: getattr(settings, each.name) for each in fields(RecordingSettings)}
        values["guidance"] = base.preset.guidance if settings.guidance is None else settings.guidance
        values["rows"] = settings.row_weights
        made_by |= {name: value for name, value in values.items() if name not in NOT_READ[self.group]}
        if self.group is Group.SPATIAL:
            made_by |= {"sampler": sampler_of(base.scheduler), "size": base.picture_size}
        return f"{self._whose}-{digest_of_json(made_by)}.safetensors"

    def prompts(self, base: Base) -> tuple[list[str], Vocabulary]:
        """Return the prompts, with the concept in place of V, and its words."""
        if self.named is None:
            return list(self.settings.ordinary), {}
        concept = self.named.concept
        prompts = [about(context, concept.name) for context in self.settings.contexts]
        return prompts, {concept.name: words_of(concept, base)}

    def record(self, base: Base, sink: Sink) -> Sink:
        """Run the model, record the rows into `sink`, and return it finished.

        Raises:
            UnusableConceptError: a forward pass is not finite; the message names concept and layer.

        """
        layers = [layer for layer in base.layout.by_group[self.group] if layer.reads in self.reads]
        prompts, vocabulary = self.prompts(base)
        first = int(self._whose[:12], 16) if self.named else 0
        seeds = [first + i for i in range(len(prompts))]
        try:
            with attached(base, self.attached):
                return record_group(self.group, base, layers, prompts, seeds, vocabulary, self.settings, sink)
        except FusionError as error:
            raise UnusableConceptError(self.token, str(error)) from error

    # Asked for at every read of the moments, and dearer than many of them.
    @cached_property
    def _whose(self) -> str:
        return content_digest(self.named.concept) if self.named else "ordinary"

    @cached_property
    def _attached_digest(self) -> str:
        return _digest(self.attached)


def recorder_here(base: Base) -> Recorder:
    """Return a recorder that records in this process, one after another."""

    def record(recordings: Sequence[Recording]) -> Iterator[Recorded]:
        for recording in recordings:
            try:
                yield recording, recording.record(base, Moments())
            except UnusableConceptError as error:
                yield recording, error

    return record


@dataclass
class Statistics:
    """Moments by recording: read if kept, otherwise recorded (by `recorder`, or here) and kept.

    Those of ordinary prompts are kept in `ordinary`, if it is given and has room.
    """

    base: Base
    folder: Path
    progress: TextProgress = log.info
    recorder: Recorder | None = None
    ordinary: Path | None = None

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise could_not_write(self.folder, error) from error

    def of(self, recording: Recording) -> Moments:
        """Return the moments; record them if they are missing, damaged or of fewer inputs.

        Raises:
            UnusableConceptError: a forward pass is not finite.

        """
        kept = read_moments(self._path(recording))
        if kept is not None and recording.reads <= kept.sums.keys():
            return kept
        return self._keep(recording, recording.record(self.base, Moments()))

    def means(self, recording: Recording) -> Mean:
        """Return a function that reads G of one input; the recording's moments were read before.

        It raises FusionError if the file has gone or was damaged meanwhile.
        """
        return partial(read_mean, self._path(recording))

    def gather(self, recordings: Sequence[Recording]) -> None:
        """Record all missing moments, and report how long the rest will take.

        Raises:
            UnusableConceptError: a forward pass is not finite; earlier recordings are kept.

        """
        missing = [recording for recording in recordings if not self._path(recording).is_file()]
        if known := len(recordings) - len(missing):
            self.progress(f"{recordings[0].group}: {known} of {len(recordings)} known")
        started = time.monotonic()
        record = self.recorder or recorder_here(self.base)
        for i, (recording, moments) in enumerate(record(missing), 1):
            if isinstance(moments, UnusableConceptError):
                raise moments
            self._keep(recording, moments)
            each = (time.monotonic() - started) / i
            left = f", about {each * (len(missing) - i):.0f} s left" if i < len(missing) else ""
            self.progress(f"{recording.group}: {i}/{len(missing)} {recording.token} recorded, {each:.1f} s each{left}")

    def _path(self, recording: Recording) -> Path:
        here = self.folder / recording.file_name(self.base)
        return here if recording.named or self.ordinary is None or here.is_file() else self.ordinary / here.name

    def _keep(self, recording: Recording, moments: Moments) -> Moments:
        here, path = self.folder / recording.file_name(self.base), self._path(recording)
        try:
            write_moments(moments, path)
        except StateError as error:
            if path == here:
                raise
            self.progress(f"{recording.token} are not kept for later fusions: {error}")
            write_moments(moments, here)
        return moments


def wanted_inputs(layers: Sequence[Layer], base_layers: Sequence[Layer], group: Group) -> frozenset[str]:
    """Return the inputs to record for a group.

    These are all inputs of the attention layers, and those of other layers that a concept changes.
    """
    return frozenset(layer.reads for layer in [*base_layers, *layers] if layer.group is group)


def _digest(changes: Mapping[str, LowRank]) -> str:
    halves = {f"{name}.{half}": getattr(pair, half) for name, pair in changes.items() for half in "AB"}
    scales = {name: pair.scale for name, pair in changes.items()}
    return digest_of_tensors(halves, also=canonical_json(scales))
