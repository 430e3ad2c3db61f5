"""What the tests of whole federations share."""

from __future__ import annotations

from pathlib import Path

import pytest

from end_to_end.federation import once, tune_all
from mos_common.base_model import Base


@pytest.fixture(scope="session")
def tuned(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of alice, bob and carol with their concepts, tuned once in a test run."""
    return once(tmp_path_factory, "tuned", lambda out: tune_all(out, tiny))


@pytest.fixture(scope="session")
def undisturbed(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The manifest of a round of `warm`, in which nothing dies and nothing is in trouble."""
    from end_to_end.dying import warm

    def make(out: Path) -> None:
        manifest = warm(out / "federation", tuned).run()
        (out / "manifest.json").write_bytes(manifest)

    return (once(tmp_path_factory, "undisturbed", make) / "manifest.json").read_bytes()
