"""Trials: two pictures under one text, and the key that says which method drew which.

Nothing that a rater receives says how a picture was made: it is known by a random name, its file is
written anew, and the key stays with the researcher. A catch trial shows two real pictures, one of
the subject and one of another subject elsewhere; who does not see the difference is not looking.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mos_common.errors import RequestError
from mos_common.text_files import NotTextError, read_text_file

RIGHT, WRONG = "right", "wrong"
QUESTIONS = ("same", "text")
"""Which picture shows V better, and which fits the text better."""
MOST_BYTES = 32 << 20


def random_name() -> str:
    """Return a name that tells nothing, and that nobody can guess."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Trial:
    """What the key says of a trial: `pictures` maps each picture's name to its method.

    The methods of a catch trial are `RIGHT` and `WRONG`.
    """

    trial: str
    concept: str
    prompt: str
    seed: int
    pictures: Mapping[str, str]

    @property
    def catch(self) -> bool:
        """True if the answer is known."""
        return set(self.pictures.values()) == {RIGHT, WRONG}


@dataclass(frozen=True)
class Key:
    """The researcher's key of one study; `about` says how the pictures were made."""

    study: str
    methods: tuple[str, ...]
    trials: tuple[Trial, ...]
    about: Mapping[str, Any]

    def json(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False).encode() + b"\n"


def read_key(path: Path) -> Key:
    """Read a key.

    Raises:
        RequestError: it is not the key of a study.

    """
    advice = "give the key.json that `mos-bench study make` wrote beside the page"
    document = read_document(path, advice)
    try:
        trials = tuple(Trial(**trial) for trial in document["trials"])
        key = Key(document["study"], tuple(document["methods"]), trials, document["about"])
        complete = isinstance(key.study, str) and all(
            len(trial.pictures) == 2 and (trial.catch or set(trial.pictures.values()) <= {*key.methods})
            for trial in trials
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is not the key of a study: {advice}") from error
    if not complete:
        raise RequestError(f"{path} is not the key of a study, or was changed: {advice}")
    return key


def read_document(path: Path, advice: str) -> dict[str, Any]:
    """Return the JSON object in a file; errors end in `advice`.

    Raises:
        RequestError: the file cannot be read, or holds anything else.

    """
    try:
        document = json.loads(read_text_file(path, most=MOST_BYTES))
    except NotTextError as error:
        raise RequestError(f"{path} {error}; {advice}") from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON, or was cut short: {advice}") from error
    if not isinstance(document, dict):
        raise RequestError(f"{path} holds a {type(document).__name__}, expected a JSON object: {advice}")
    return document
