"""What kept moments are known by: everything that decides them, and nothing else."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import fields, replace
from pathlib import Path

import diffusers
import pytest
import torch

from mos_common.base_model import Base
from mos_common.digests import digest_of_code
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_server.fusion import statistics
from mos_server.fusion.moments import Moments
from mos_server.fusion.recording_settings import RecordingSettings
from mos_server.fusion.statistics import RECORDED_BY, Recording, Statistics

# Modules that recording imports but that do not decide what is recorded: the key covers them.
DO_NOT_DECIDE = {
    # What is recorded are plain texts, and nobody looks at the steps.
    "mos_common.aspect",
    "mos_common.drawing_steps",
    "mos_common.prompt_grammar",
    "mos_common.weighted_text",
    "mos_common.written_prompts",
    # Where a base's files are and what they may be: it is known by the fingerprint of what is read.
    "mos_common.base_configuration",
    "mos_common.base_files",
    "mos_common.base_hub",
    "mos_common.base_names",
    "mos_common.base_weights",
    "mos_common.checkpoint_kinds",
    "mos_common.checkpoint_schedule",
    "mos_common.file_beginnings",
    "mos_common.safe_reading",
    "mos_common.single_file_base",
    "mos_common.concept_file",  # content digests: the first half of the file's name
    "mos_common.digests",
    "mos_common.errors",
    "mos_common.files",
    "mos_common.fingerprint",  # the base's fingerprint
    "mos_common.fingerprint_keys",
    "mos_common.fused_model",
    "mos_common.libraries",  # what the libraries log
    "mos_common.names",
    # nothing here follows pictures
    *(f"mos_common.control.{name}" for name in ["adapters", "condition", "drawn", "residuals"]),
    "mos_common.control",
    "mos_common.own.attach",  # nothing is recorded with own changes
    "mos_common.presets",  # guidance
    "mos_common.progress",
    "mos_common.settings",
    "mos_server.fusion.recording_settings",  # the settings themselves
}


@pytest.fixture
def recording_of(sixteen, make_concept):
    """A recording of one group: `recording_of(Group.SPATIAL, steps=2)`."""

    def make(group: Group, named: bool = True, **settings: object) -> Recording:
        concept = NamedConcept("alice", make_concept(sixteen)) if named else None
        reads = frozenset(layer.reads for layer in sixteen.layout.layers if layer.group is group)
        short = {"steps": 2, "contexts": ("V",), "ordinary": ("a dog",), **settings}
        return Recording(group, concept, {}, reads, RecordingSettings(**short))

    return make


def with_sampler(base: Base, kind: str, **config: object) -> Base:
    """The base with another sampler or sampler setting: the same fingerprint, other drawings."""
    return replace(base, scheduler=getattr(diffusers, kind).from_config({**base.scheduler.config, **config}))


@pytest.mark.parametrize("named", [True, False])
def test_another_sampler_is_another_recording_of_the_unet(sixteen, recording_of, named):
    recording = recording_of(Group.SPATIAL, named)
    names = {
        recording.file_name(base)
        for base in (
            sixteen,
            with_sampler(sixteen, "EulerDiscreteScheduler"),
            with_sampler(sixteen, "PNDMScheduler", timestep_spacing="trailing"),
        )
    }
    assert len(names) == 3
    assert recording.file_name(with_sampler(sixteen, "PNDMScheduler")) in names


@pytest.mark.parametrize("batch", [1, 2])
def test_a_sampler_that_adds_noise_records_the_same_moments_whatever_else_is_drawn(sixteen, recording_of, batch):
    """So the same concepts fuse to the same model; in other batches up to rounding."""
    ancestral = with_sampler(sixteen, "EulerAncestralDiscreteScheduler")
    once = recording_of(Group.SPATIAL, contexts=("V", "a V"), batch=2).record(ancestral, Moments())
    torch.rand(1)
    again = recording_of(Group.SPATIAL, contexts=("V", "a V"), batch=batch).record(ancestral, Moments())
    assert once.sums.keys() == again.sums.keys()
    for name, total in once.sums.items():
        if batch == 2:
            assert torch.equal(again.sums[name], total)
        torch.testing.assert_close(again.sums[name], total, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("group", Group)
def test_what_guidance_moves_away_from_is_part_of_what_is_recorded(sixteen, recording_of, group):
    zeros = replace(sixteen, force_zeros_for_empty_prompt=True)
    assert zeros.fingerprint == sixteen.fingerprint
    assert recording_of(group).file_name(zeros) != recording_of(group).file_name(sixteen)


@pytest.mark.parametrize("group", [Group.TEXT, Group.CROSS])
def test_a_base_that_is_guided_away_from_zeros_has_no_empty_text_to_record(sixteen, recording_of, group):
    zeros = replace(sixteen, force_zeros_for_empty_prompt=True)
    told = recording_of(group, unconditional=True).record(zeros, Moments())
    without = recording_of(group, unconditional=False).record(zeros, Moments())
    with_text = recording_of(group, unconditional=True).record(sixteen, Moments())
    name = min(told.sums)
    assert torch.equal(told.sums[name], without.sums[name])
    assert not torch.equal(told.sums[name], with_text.sums[name])


@pytest.mark.parametrize("group", [Group.TEXT, Group.CROSS])
def test_recordings_of_texts_know_no_sampler(sixteen, recording_of, group):
    recording = recording_of(group)
    assert recording.file_name(with_sampler(sixteen, "EulerDiscreteScheduler")) == recording.file_name(sixteen)


OTHER = {"contexts": ("V in a forest",), "ordinary": ("a cat",), "rows": "words", "unconditional": True}
OTHER |= {"steps": 3, "guidance": 1.5, "batch": 1}


@pytest.mark.parametrize("group", Group)
@pytest.mark.parametrize("setting", [field.name for field in fields(RecordingSettings)])
def test_moments_are_kept_apart_by_every_setting_that_they_depend_on(sixteen, recording_of, group, setting):
    """Texts are not sampled, and the UNet reads no text positions; all else is part of the key."""
    sampling = {"steps", "guidance", "batch"}
    depends = setting not in ({"rows", "ordinary"} if group is Group.SPATIAL else sampling | {"ordinary"})
    plain, other = recording_of(group), recording_of(group, **{setting: OTHER[setting]})
    assert (plain.file_name(sixteen) != other.file_name(sixteen)) == depends


def test_the_bases_own_guidance_is_the_number_that_it_stands_for(sixteen, recording_of):
    own, given = (recording_of(Group.SPATIAL, guidance=g) for g in (None, sixteen.preset.guidance))
    assert own.file_name(sixteen) == given.file_name(sixteen)
    assert recording_of(Group.SPATIAL, guidance=3.0).file_name(sixteen) != own.file_name(sixteen)


def test_another_sampler_records_anew_and_the_same_one_does_not(sixteen, recording_of, tmp_path):
    recording = recording_of(Group.SPATIAL, named=False)
    Statistics(sixteen, tmp_path).of(recording)
    (first,) = tmp_path.iterdir()
    written = first.stat().st_mtime_ns
    Statistics(sixteen, tmp_path).of(recording)
    assert [first.stat().st_mtime_ns, len(list(tmp_path.iterdir()))] == [written, 1]
    Statistics(with_sampler(sixteen, "EulerDiscreteScheduler"), tmp_path).of(recording)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_comment_or_docstring_keeps_what_was_recorded_and_a_change_of_the_code_does_not(
    sixteen, recording_of, tmp_path, monkeypatch
):
    """A copy of the module that reads prompts replaces it: unchanged, commented, or changed."""
    source = source_of("mos_common.words")
    commented = source.replace('"""', '"""Once more: ', 1) + "\n# Nothing to see here.\n"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        statistics, "RECORDED_BY", tuple("copied_words" if name == "mos_common.words" else name for name in RECORDED_BY)
    )
    names = []
    for text in (source, commented, source.replace("+ 1", "+ 2", 1)):
        (tmp_path / "copied_words.py").write_text(text)
        digest_of_code.cache_clear()
        names.append(recording_of(Group.TEXT).file_name(sixteen))
    digest_of_code.cache_clear()
    assert len({source, commented}) == 2
    assert names[0] == names[1] != names[2]


def test_every_module_that_recording_imports_decides_or_does_not():
    """A new module that recording imports belongs in RECORDED_BY, or in the list above."""
    reached, waiting = set[str](), ["mos_server.fusion.statistics"]
    while waiting:
        name = waiting.pop()
        if name in reached or name in DO_NOT_DECIDE or importlib.util.find_spec(name) is None:
            continue
        reached.add(name)
        for node in ast.walk(ast.parse(source_of(name))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("mos_common.", "mos_server.")):
                waiting.append(str(node.module))
    assert reached == set(RECORDED_BY)


def source_of(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
