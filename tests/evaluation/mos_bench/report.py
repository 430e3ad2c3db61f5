"""The demo's report: the sizes of uploads, the scores of each concept, and sheets of pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mos_bench import showcase
from mos_bench.participant import Participant
from mos_client.federation.session import Session
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import split_pictures
from mos_common.base_model import load_base
from mos_common.concept import words_of
from mos_common.concept_file import concept_from_bytes, content_digest
from mos_common.files import write_atomically
from mos_common.fused_model import FusedConcept, FusedModel, NamedConcept, read_fused
from mos_common.identity import IdentityProbe, probe_for, score_in
from mos_common.node_key import key_digest, load_node_key, public_pem
from mos_common.pictures import as_image, save_image
from mos_common.scores import ImageScorer
from mos_common.shell import say
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.average import AverageSettings
from mos_server.state.folder import open_state

SHOWN = 3
CELL, GAP, HEAD = 128, 6, 26


def report_of(
    out: Path,
    state: Path,
    participants: Sequence[Participant],
    drawn: tuple[Participant, Participant],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the content of `report.json`; write `contact-sheet.png` and `showcase.png`.

    `drawn` are those on the left and on the right of the pictures.
    """
    torch.set_num_threads(2)
    base, fused = load_base("tiny"), read_fused(out / "fused")
    artefacts = open_state(state).artefacts
    uploads = {concept.token: artefacts.read_concept(concept.digest) for concept in fused.manifest.concepts}
    named = [NamedConcept(c.participant, concept_from_bytes(uploads[c.token])) for c in fused.manifest.concepts]
    average = fuse(base, named, AverageSettings(), progress=lambda line: None)
    by_token = {concept.token: concept for concept in fused.manifest.concepts}
    rows, concepts = [], {}
    for participant in participants:
        concept = next(n.concept for n in named if n.participant == participant.name)
        tuned_on, held_back = split_pictures(participant.pictures)
        probe = probe_for(base, concept, load_pictures(held_back, base.picture_size), ImageScorer())
        fused_concept = by_token[participant.token]
        rows.append(_row(probe, participant, concept, fused, average, load_pictures(tuned_on[:2], base.picture_size)))
        concepts[participant.concept.strip("<>")] = {
            "node_key": key_digest(public_pem(load_node_key(Session.load(participant.state).node_key))),
            "digest": content_digest(concept),
            "upload_bytes": len(uploads[participant.token]),
            "identity": _identity(fused_concept, score_in(probe, average, participant.token)),
        }
    write_atomically(out / "contact-sheet.png", _png(contact_sheet(rows)))
    shown = showcase.pictures(out)
    subjects = showcase.judge(base, shown, *drawn, participants)
    save_image(showcase.poster(shown, subjects), out / "showcase.png")
    size = sum(file.stat().st_size for file in (out / "fused").iterdir())
    return {
        "seconds": dict(seconds),
        "download_bytes": size,
        "concepts": concepts,
        "base": base.fingerprint,
        "showcase": {"verdict": showcase.verdict(subjects), "subjects": [asdict(each) for each in subjects]},
    }


def show(out: Path, report: Mapping[str, Any]) -> None:
    """Print the report for a person."""
    say("")
    for name in ("showcase.png", "contact-sheet.png", "picture.png", "fused", "report.json"):
        say(f"{out / name}")
    say(f"\n{'concept':>10} {'sent':>10} {'class word':>11} {'single':>8} {'average':>8} {'fused':>8} {'ceiling':>8}")
    for name, concept in report["concepts"].items():
        identity = concept["identity"]
        numbers = " ".join(f"{identity[key]:>8.3f}" for key in ("single", "average", "fused", "ceiling"))
        say(f"{name:>10} {concept['upload_bytes']:>10,} {identity['class_word']:>11.3f} {numbers}")
    say("identity: cosine with pictures held back from tuning, in contexts that fusion did not record")
    say(f"showcase: {report['showcase']['verdict']}")
    say(f"downloaded by each participant: {report['download_bytes']:,} bytes")
    for stage, seconds in report["seconds"].items():
        say(f"{seconds:>8.1f} s  {stage}")


def _identity(concept: FusedConcept, average: float) -> dict[str, float]:
    assert concept.identity is not None, "the demo's participants all score the candidate"
    return {
        "class_word": concept.identity.class_word,
        "single": concept.identity.single,
        "average": average,
        "fused": concept.identity.fused,
        "ceiling": concept.identity.ceiling,
    }


def _row(
    probe: IdentityProbe,
    participant: Participant,
    concept: Any,
    fused: FusedModel,
    average: FusedModel,
    pictures: Tensor,
) -> list[tuple[str, Tensor]]:
    single = probe.drawings(concept.name, concept.pairs, {concept.name: words_of(concept, probe.base)})[:SHOWN]
    both = [probe.drawings(participant.token, model.changes, model.vocabulary)[:SHOWN] for model in (fused, average)]
    titles = [
        f"pictures of {participant.concept}",
        *(f"{kind} {participant.concept}" for kind in ("single", "fused", "weight-averaged")),
    ]
    return list(zip(titles, [pictures, single, *both], strict=True))


def contact_sheet(rows: Sequence[Sequence[tuple[str, Tensor]]]) -> Image.Image:
    """Return an image with one row of labelled groups of pictures per concept."""
    counts = [len(pictures) for _, pictures in rows[0]]
    width = sum(counts) * CELL + (len(counts) + 1) * GAP
    sheet = Image.new("RGB", (width, len(rows) * (CELL + HEAD + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for r, row in enumerate(rows):
        left, top = GAP, r * (CELL + HEAD + GAP)
        for title, pictures in row:
            pen.text((left, top + 6), title, fill="black", font=font)
            for picture in pictures:
                sheet.paste(as_image(picture).resize((CELL, CELL), Image.Resampling.NEAREST), (left, top + HEAD))
                left += CELL
            left += GAP
    return sheet


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
