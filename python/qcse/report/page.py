"""A report's page: one self-contained HTML file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .runs import Group, Run
from .tables import ACROSS_COLUMNS, COLUMNS, across_rows

# The page.

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; color: #1f2937; background: #f9fafb;
       margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 64px; background: #fff; }
h1 { font-size: 28px; margin: 0 0 4px; color: #111827; }
h2 { font-size: 19px; margin: 40px 0 10px; color: #111827; border-bottom: 1px solid #e5e7eb; padding-bottom: 6px; }
p.lead { margin: 0; color: #6b7280; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 10px; border-bottom: 1px solid #e5e7eb; text-align: left; vertical-align: top; }
th { color: #6b7280; font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.value { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
img { max-width: 100%; height: auto; display: block; margin: 8px auto; }
ul.notes { color: #6b7280; font-size: 13.5px; padding-left: 18px; }
details { margin: 8px 0; border: 1px solid #e5e7eb; border-radius: 8px; padding: 8px 14px; }
summary { cursor: pointer; font-weight: 600; }
""".strip()


def html_page(
    groups: Sequence[Group],
    rows: Sequence[Sequence[str]],
    pictures: Sequence[tuple[str, str, Path]],
    notes: Sequence[str],
) -> str:
    runs = [run for group in groups for run in group.runs]
    envs = list(dict.fromkeys(run.env for run in runs))
    count = f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>qcse: {escape(', '.join(envs))}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>",
        f"<h1>Offline-to-online runs</h1>\n<p class='lead'>{count} on {escape(', '.join(envs))}</p>",
        "<h2>Results</h2>\n<div class='wide'><table>\n<tr>"
        + "".join(f"<th{_numeric(i)}>{escape(name)}</th>" for i, name in enumerate(COLUMNS))
        + "</tr>",
    ]
    for group, row in zip(groups, rows, strict=True):
        swatch = f"<span class='swatch' style='background:{group.colour}'></span>"
        cells = [f"<td{_numeric(i)}>{swatch if i == 1 else ''}{escape(cell)}</td>" for i, cell in enumerate(row)]
        parts.append(f"<tr>{''.join(cells)}</tr>")
    parts.append("</table></div>")
    across = across_rows(groups)
    if across:
        head = "".join(f"<th{_numeric(i + 2)}>{escape(name)}</th>" for i, name in enumerate(ACROSS_COLUMNS))
        parts.append(f"<h2>Across seeds and environments</h2>\n<div class='wide'><table>\n<tr>{head}</tr>")
        for row in across:
            cells = [f"<td{_numeric(i + 2)}>{escape(cell)}</td>" for i, cell in enumerate(row)]
            parts.append(f"<tr>{''.join(cells)}</tr>")
        parts.append("</table></div>")
    parts.append("<ul class='notes'>")
    parts += [f"<li>{escape(note)}</li>" for note in notes]
    parts.append("</ul>")
    for heading, alternative, path in pictures:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        parts.append(f"<h2>{escape(heading)}</h2>")
        parts.append(f"<img alt='{escape(alternative, quote=True)}' src='data:image/png;base64,{data}'>")
    parts.append("<h2>Data</h2>")
    parts.append(_pairs(_data_facts(runs)))
    parts.append("<h2>Machine and versions</h2>")
    parts += _folded(
        [(run.path.name, _machine(run)) for run in runs],
        "machine.json is missing",
    )
    parts.append("<h2>Configuration</h2>")
    parts.append(_configurations(groups))
    parts.append("</main>\n</body>\n</html>\n")
    return "\n".join(parts)


def _numeric(column: int) -> str:
    return " class='number'" if column >= 3 else ""


def _plain_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain_text, value)) or "none"
    return "not set" if value is None else str(value)


def _pairs(facts: dict[str, Any]) -> str:
    lines = [
        f"<tr><td>{escape(str(name))}</td><td class='value'>{escape(_plain_text(value))}</td></tr>"
        for name, value in facts.items()
    ]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _configurations(groups: Sequence[Group]) -> str:
    """Every option, one column a group; first those in which groups differ, the rest folded away."""
    names = [name for name in dict.fromkeys(n for g in groups for n in g.runs[0].config) if name not in ("seed", "out")]

    def cell(group: Group, name: str) -> str:
        return " / ".join(dict.fromkeys(_plain_text(run.config.get(name)) for run in group.runs))

    def table(chosen: Sequence[str]) -> str:
        heads = "".join(f"<th>{escape(group.env)}<br>{escape(group.label)}</th>" for group in groups)
        lines = [
            f"<tr><td>{escape(name)}</td>"
            + "".join(f"<td class='value'>{escape(cell(group, name))}</td>" for group in groups)
            + "</tr>"
            for name in chosen
        ]
        return f"<div class='wide'><table>\n<tr><th>option</th>{heads}</tr>\n" + "\n".join(lines) + "\n</table></div>"

    differing = [name for name in names if len({cell(group, name) for group in groups}) > 1]
    common = [name for name in names if name not in differing]
    parts = [table(differing)] if differing else []
    if common:
        summary = f"{len(common)} options that are equal in all" if len(groups) > 1 else f"all {len(common)} options"
        parts.append(f"<details><summary>{summary}</summary>\n{table(common)}\n</details>")
    return "\n".join(parts)


def _data_facts(runs: Sequence[Run]) -> dict[str, Any]:
    """Dataset file -> what its runs noted down about it."""
    facts: dict[str, Any] = {}
    for run in runs:
        dataset = run.config.get("dataset")
        noted = run.machine.get("data")
        facts[str(dataset) if dataset else "no dataset"] = noted if noted else "no details were kept"
    return facts


def _machine(run: Run) -> dict[str, Any]:
    """The facts of the run's latest part, and what was otherwise in the parts before."""
    facts = {name: value for name, value in run.machine.items() if name not in ("data", "earlier")}
    earlier = run.machine.get("earlier")
    for number, part in enumerate(earlier if isinstance(earlier, list) else [], 1):
        if isinstance(part, dict):
            other = {name: value for name, value in part.items() if name != "data" and facts.get(name) != value}
            facts[f"part {number} of the run"] = other or "the same"
    return facts


def _folded(tables: Sequence[tuple[str, dict[str, Any]]], absent: str) -> list[str]:
    """Tables that fold away; runs with equal ones share them."""
    shared: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name, facts in tables:
        shared.setdefault(json.dumps(facts, sort_keys=True), (facts, []))[1].append(name)
    opened = " open" if len(shared) == 1 else ""
    out = []
    for facts, names in shared.values():
        body = _pairs(facts) if facts else f"<p>{escape(absent)}</p>"
        out.append(f"<details{opened}><summary>{escape(', '.join(names))}</summary>\n{body}\n</details>")
    return out
