"""Say which files of a folder are not used, and why: somebody put them there for a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mos_client.pictures.captions_table import NAME_COLUMNS, TEXT_COLUMNS, CaptionTable
from mos_client.pictures.companions import (
    CAPTION_FOLDERS,
    CONDITION_ENDING,
    DRAWN_ENDING,
    MASK_FOLDERS,
    is_caption,
    is_mask,
    is_picture,
    name_key,
)
from mos_client.pictures.layout import Layout, entries, files_below, listed_pictures
from mos_client.pictures.wording import counted, few

MOST_FOLDERS = 20  # of sub-folders that are named
# Of cameras, drawing programs and the web; Pillow reads some of them, and nobody tunes on them.
OTHER_PICTURES = frozenset(
    {
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
        *(".psd", ".xcf", ".kra", ".svg", ".jxl", ".jp2", ".tga", ".ppm", ".exr", ".hdr", ".ico", ".apng", ".pdf"),
    }
)
NO_USE = {
    CONDITION_ENDING: "pictures to condition on (OneTrainer) have no use here",
    DRAWN_ENDING: "it was drawn while a concept was tuned",
}


@dataclass(frozen=True)
class Unused:
    """A file or a sub-folder that is not used, and why.

    `meant` is true if it looks as if it was meant to be: a caption, a mask, or pictures.
    """

    path: Path
    reason: str
    meant: bool


def unused_files(layout: Layout, used: Collection[Path]) -> Iterator[Unused]:
    """Yield what a folder holds beside the files that are `used`; sub-folders as one each."""
    companions = [
        folder
        for parent in {path.parent for path in layout.pictures}
        for folder in layout.companion_folders(parent, (*CAPTION_FOLDERS, *MASK_FOLDERS))
        if folder.is_relative_to(layout.folder)
    ]
    looked_into = {layout.folder, layout.place, *companions}
    for folder in sorted(looked_into):
        for path in entries(folder):
            if path in used or path in looked_into:
                continue
            if path.is_dir() and not is_picture(path):
                yield from _subfolder(path, used)
            else:
                yield _file(path, of_masks=name_key(folder.name) in MASK_FOLDERS)
    for table in layout.tables:
        yield from _of_table(table)


def lines_about(unused: Iterable[Unused], folder: Path) -> Iterator[str]:
    """Yield one line for each reason, with the names of a few files."""
    by_reason: dict[tuple[str, Path], list[str]] = {}
    for each in unused:
        shown = each.path.relative_to(folder) if each.path.is_relative_to(folder) else each.path
        by_reason.setdefault((each.reason, shown.parent), []).append(str(shown))
    for (reason, _), names in by_reason.items():
        yield f"not used: {few(names)}: {reason}"


def _subfolder(folder: Path, used: Collection[Path]) -> Iterator[Unused]:
    """Yield each folder in a sub-folder that holds files, up to a number."""
    holding = {path: names for path, names in files_below(folder).items() if any(names)}
    for path, (pictures, others) in list(holding.items())[:MOST_FOLDERS]:
        held = " and ".join(
            f"{counted(len(names), noun)} ({few(names)})"
            for names, noun in ((pictures, "picture"), (others, "other file"))
            if names
        )
        if taken := sum(each.parent == path for each in used):
            yield Unused(path, f"it holds {held}; {taken} are used, as a table of captions names them", False)
        else:
            yield Unused(path, f"sub-folders are not looked into; it holds {held}", bool(pictures))
    if len(holding) > MOST_FOLDERS:
        yield Unused(folder, f"{len(holding) - MOST_FOLDERS} more folders below it are not looked into", True)


def _file(path: Path, *, of_masks: bool) -> Unused:
    key = name_key(path.name)
    if is_caption(path):
        return Unused(path, "no picture has this name, so it is nobody's caption", True)
    if reason := next((reason for ending, reason in NO_USE.items() if Path(key).stem.endswith(ending)), None):
        return Unused(path, reason, False)
    if is_mask(path) or (of_masks and is_picture(path)):
        return Unused(path, "no picture has this name, so it is nobody's mask", True)
    if is_picture(path):
        return Unused(path, "no picture of the concept by its place", True)
    if Path(key).suffix in OTHER_PICTURES:
        return Unused(path, "pictures of this format are not read: save it as PNG or JPEG", True)
    return Unused(path, "it is neither a picture, a caption nor a mask", False)


def _of_table(table: CaptionTable) -> Iterator[Unused]:
    if not table.has_captions:
        wanted, has = (
            " or ".join(TEXT_COLUMNS),
            ", ".join(sorted(map(str, table.columns - set(NAME_COLUMNS)))) or "none",
        )
        yield Unused(table.path, f"no row has a caption in a column {wanted} (other columns: {has})", True)
    there = {name_key(path.relative_to(table.path.parent).as_posix()) for path in listed_pictures(table)}
    if missing := [name for key, name in table.names.items() if key not in there]:
        yield Unused(table.path, f"it names pictures that are not there: {few(missing)}", True)
