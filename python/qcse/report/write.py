"""`qcse report`: tables, pictures and the page of some runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..errors import QcseError
from ..files import atomic_path, own
from ..runs.folder import run_folders
from .figures import draw_bonus, draw_curves, draw_losses
from .page import html_page
from .runs import Group, ReportError, group_runs, read_run
from .tables import ACROSS_COLUMNS, across_rows, notes_on, table_rows, text_table
from .visits import Visits, draw_visits, read_visits


def report(dirs: Sequence[Path], out: Path) -> str:
    """Write report.html, curves.png and, for each environment, losses-, visits- and, where a bonus was used, bonus-
    followed by its name and .png.

    Args:
        dirs: run folders, or folders that hold some; one named twice counts once. One that cannot be read is left out,
            and a note says why.
        out: folder for the report and its pictures; made if missing, files of an earlier report are replaced.

    Returns:
        The table as text, with its notes and the paths of what was written.

    Raises:
        ReportError: no folders, one that does not exist, none that can be read, or an `out` that cannot be written.
        InUseError: another process writes a report there.
    """
    if not dirs:
        raise ReportError("report: got no run folders, expected at least one made by `qcse train`")
    for given in dirs:
        if not Path(given).resolve().exists():
            raise ReportError(f"report: {given} is not a run folder: there is no such folder")
    runs, left_out = [], []
    for path in {path.resolve(): path for given in dirs for path in run_folders(Path(given))}.values():
        try:
            runs.append(read_run(path))
        except ReportError as error:
            left_out.append(str(error).removeprefix("report: "))
    if not runs:
        more = f" (and {len(left_out) - 1} more folders cannot be read)" if len(left_out) > 1 else ""
        raise ReportError(f"report: {left_out[0]}{more}")
    groups = group_runs(runs)
    rows = table_rows(groups)
    out = Path(out)
    try:
        with own(out):
            with matplotlib.rc_context({"text.parse_math": False}):  # a name may hold a dollar
                pictures, undrawn = _draw(groups, rows, out)
            notes = notes_on(groups, left_out + undrawn)
            page = out / "report.html"
            with atomic_path(page) as temporary:
                temporary.write_bytes(html_page(groups, rows, pictures, notes).encode("utf-8", "replace"))
    except OSError as error:
        raise ReportError(f"report: {out} cannot be written ({error}); choose another folder") from error
    written = [page, *(path for _, _, path in pictures)]
    tables = [text_table(rows)]
    if across := across_rows(groups):
        tables += ["", text_table(across, ACROSS_COLUMNS, words=1)]
    return "\n".join([*tables, "", *notes, "", *(f"wrote {path}" for path in written)])


def _draw(
    groups: Sequence[Group], rows: Sequence[Sequence[str]], out: Path
) -> tuple[list[tuple[str, str, Path]], list[str]]:
    """Draw the pictures; returns their headings, alternative texts and files, and what could not be drawn and why."""
    pictures = [("Learning curves", text_table(rows), _save(draw_curves(groups), out / "curves.png"))]
    left_out: list[str] = []
    names = _file_names(group.env for group in groups)
    for env, name in names.items():
        members = [group for group in groups if group.env == env]
        for figure, kind, title, words in (
            (draw_bonus(members), "bonus", "The bonus", "Diagnostics of the bonus"),
            (draw_losses(members), "losses", "Losses", "Losses and Q of each run"),
        ):
            if figure is not None:
                pictures.append((f"{title}, {env}", f"{words} in {env}", _save(figure, out / f"{kind}-{name}.png")))
    for env, name in names.items():
        seen: list[tuple[str, str, Visits]] = []
        for group in (group for group in groups if group.env == env):
            try:
                visits = read_visits(group.runs[0].path)  # one run for each method: its first seed
            except (QcseError, OSError) as error:
                left_out.append(f"visited states of {group.runs[0].path.name}: {error}")
                continue
            if visits is not None and (not seen or visits.online.shape[1] == seen[0][2].online.shape[1]):
                seen.append((group.label, group.colour, visits))
        if seen:
            try:
                path = _save(draw_visits(seen), out / f"visits-{name}.png")
            except ValueError as error:  # numbers that no axis can hold
                left_out.append(f"visited states in {env}: {error}")
                continue
            pictures.append((f"Visited states, {env}", f"States of the dataset and of each method in {env}", path))
    return pictures, left_out


def _file_names(envs: Iterable[str]) -> dict[str, str]:
    """Environment -> its part of file names, which are short and differ."""
    names: dict[str, str] = {}
    for env in dict.fromkeys(envs):
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in env)
        if len(name) > 60 or name.lower() in (other.lower() for other in names.values()):
            name = f"{name[:50]}-{hashlib.sha256(env.encode()).hexdigest()[:8]}"
        names[env] = name
    return names


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
    return path
