"""Make an environment with the oldest declared libraries, or with the newest ones.

`python tests/libraries/environment.py oldest build/libraries/oldest` installs the product with
every dependency at the lower bound that pyproject.toml declares; `newest` takes whatever the
package index has today. torch stays at the version of constraints.txt in both, so that a machine
without a GPU gets the build that it already has. `make oldest` and `make newest` call this and then
run the tests of this folder there.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("rivals", "heic")
TESTED_WITH = ("pytest", "hypothesis", "beartype")


def declared() -> list[Requirement]:
    """Return what pyproject.toml requires, with the extras that the tour uses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def oldest() -> Iterator[str]:
    """Yield a constraint for every requirement: the lower bound that it declares."""
    for requirement in declared():
        bounds = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==")]
        if len(bounds) != 1:
            raise ValueError(f"{requirement}: expected one lower bound or one exact version")
        if requirement.name != "torch":
            yield f"{requirement.name}=={bounds[0]}"


def pinned_torch() -> str:
    """Return the line of constraints.txt that pins torch."""
    return next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))


def make_environment(which: str, folder: Path) -> None:
    """Install the product into a new environment; do nothing if it is there already."""
    constraints = [pinned_torch(), *(oldest() if which == "oldest" else ())]
    made_by = hashlib.sha256("\n".join([*constraints, *map(str, declared())]).encode()).hexdigest()
    stamp = folder / "made-by"
    if stamp.is_file() and stamp.read_text() == made_by:
        return
    venv.create(folder, with_pip=True, clear=True)
    (folder / "constraints.txt").write_text("\n".join(constraints) + "\n")
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    product = f"{ROOT}[{','.join(EXTRAS)}]"
    command = [*install, "--constraint", folder / "constraints.txt", "--editable", product, *TESTED_WITH]
    subprocess.run(command, check=True)
    stamp.write_text(made_by)


if __name__ == "__main__":
    make_environment(sys.argv[1], Path(sys.argv[2]))
