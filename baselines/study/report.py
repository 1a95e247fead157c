r"""A finished study as one page: tables, figures, what they show in words computed from the numbers, configuration."""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from baselines.common.figures import save
from baselines.common.files import read_json, write_text
from baselines.common.tables import markdown_table
from baselines.common.terminal import require
from baselines.study.parts import PARTS
from baselines.study.parts.base import Page, Part
from baselines.study.tables import protocol

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

DPI = 110  # of the page; pictures have twice as many, for sharp screens and for paper
Shown = list[tuple[str, Part, Page]]  # name, part and what it shows
TITLE = "Is invariance learned from data genuine?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""The options of `python -m baselines report`."""
    parser.add_argument("folder", type=Path, help="of a finished study, such as runs/study")
    several: dict[str, Any] = {"nargs": "+", "choices": PARTS, "metavar": "PART", "default": list(PARTS)}
    parser.add_argument("--parts", **several, help="that are shown (default: all that the folder holds)")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the folder)")
    help_ = "write this as well, its figures in a folder beside it"
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=help_)


def main(args: argparse.Namespace) -> None:
    r"""Write the page, one file that needs no network."""
    require("report", "jinja2", "matplotlib")
    results, times = _read(args.folder)
    results["parts"] = {name: found for name, found in results["parts"].items() if name in args.parts}
    parts = shown(results)
    out = args.out or args.folder / "report.html"
    write_text(out, html(results, times, parts))
    Console().print(f"{out}, {out.stat().st_size / 1e6:.1f} MB", soft_wrap=True, markup=False)
    if args.markdown:
        write_markdown(args.markdown, results, times, parts)
        Console().print(f"{args.markdown}, figures in {_figures(args.markdown)}", soft_wrap=True, markup=False)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    r"""The results of a study and its times."""
    found = []
    wanted = {"results.json": {"configuration", "parts"}, "times.json": {"machine", "wall_seconds"}}
    for path, keys in ((folder / name, keys) for name, keys in wanted.items()):
        if not path.exists():
            hint = "Run python -m baselines study --out with this folder first."
            raise FileNotFoundError(f"report: expected folder with a finished study, got no {path}. {hint}")
        found.append(read_json(path))
        if not isinstance(found[-1], dict) or not keys <= set(found[-1]):
            raise ValueError(f"report: expected {path} of a study, got other JSON. Run the study again.")
    results, times = found
    return results, times


def shown(results: dict[str, Any]) -> Shown:
    r"""The parts of a study with their pages, in the order of `PARTS`."""
    entries = ((name, part, results["parts"].get(name)) for name, part in PARTS.items())
    return [(name, part, part.page(found)) for name, part, found in entries if found]


def lead(results: dict[str, Any]) -> str:
    r"""What was done, in a sentence."""
    configuration = results["configuration"]
    entries = [run for runs in results["parts"].values() for run in runs if "recipe" in run]
    if not entries:
        return f"Data: {configuration['source']['data']}."
    count, groups = len({run["name"] for run in entries}), " and ".join(configuration["groups"])
    return f"{count} trainings of the {configuration['model']} for {groups}. {protocol(entries)}"


def html(results: dict[str, Any], times: dict[str, Any], parts: Shown) -> str:
    r"""The page."""
    import jinja2
    from markupsafe import Markup

    def badge(verdict: str) -> Markup:
        return Markup('<span class="verdict {}">{}</span>').format(verdict.replace(" ", "-"), verdict)

    how: dict[str, Any] = {
        "autoescape": True,
        "undefined": jinja2.StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    environment = jinja2.Environment(loader=jinja2.PackageLoader("baselines"), **how)
    return environment.get_template("report.html.j2").render(
        title=TITLE,
        lead=lead(results),
        summary=any(page.verdict for *_, page in parts),
        parts=parts,
        badge=badge,
        picture=lambda p: (_base64(p.figure), f"{p.figure.get_figwidth() * DPI:.0f}", p.alt),
        machine=_machine(times),
        configurations=_configurations(results),
    )


def _configurations(results: dict[str, Any]) -> list[tuple[str, str]]:
    r"""The configurations that the parts were carried out with, as JSON, and the titles of those parts."""
    earlier = results.get("earlier", {})
    titles: dict[str, list[str]] = {}
    for name in results["parts"]:
        text = json.dumps(earlier.get(name, results["configuration"]), indent=1)
        titles.setdefault(text, []).append(PARTS[name].title)
    return [(", ".join(parts), text) for text, parts in titles.items()]


def write_markdown(path: Path, results: dict[str, Any], times: dict[str, Any], parts: Shown) -> None:
    r"""The same as Markdown, with the figures as files beside it."""
    figures = _figures(path)
    lines = [f"# {TITLE}", "", lead(results)]
    claims = [f"| {part.title}: {part.claim} | **{page.verdict}** |" for _, part, page in parts if page.verdict]
    lines += ["", "| claim | here it |", "|---|---|", *claims] if claims else []
    for _, part, page in parts:
        lines += ["", f"## {part.title}", "", *([] if page.verdict else [f"> {part.claim}", ""])]
        lines += [*(f"- {finding.text}" for finding in page.findings), *([""] if page.pictures else [])]
        for picture in page.pictures:
            save(picture.figure, figures / f"{picture.name}.png", dpi=DPI)
            lines += [f"![{picture.alt}]({figures.name}/{picture.name}.png)"]
        for table in page.tables:
            lines += ["", markdown_table(table.head, table.rows), *(["", table.caption] if table.caption else [])]
    write_text(path, "\n".join([*lines, "", _machine(times), ""]))


def _base64(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * DPI)
    return base64.b64encode(buffer.getvalue()).decode()


def _figures(path: Path) -> Path:
    return path.parent / f"{path.stem}-figures"


def _machine(times: dict[str, Any]) -> str:
    machine, seconds = times["machine"], times.get("training_seconds", {})
    total = sum(seconds.values())
    trainings = f"The times of the trainings, one core each, add up to {total:.0f} s. " if seconds else ""
    return (
        f"{trainings}Wall time of the last invocation {times['wall_seconds']:.0f} s, {machine['workers']} processes on "
        f"{machine['cores']} cores ({machine['processor']}); Python {machine['python']}, torch {machine['torch']}."
    )
