r"""The checks of a test run as one HTML page that needs no network; everything in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Checks of invariance</title>
<style>
  body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24; background: #fff;
         font: 15px/1.5 system-ui, sans-serif; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #d8dee4; }
  .passed { color: #116329; font-weight: 600; } .failed { color: #a40e26; font-weight: 600; }
  .why { color: #57606a; font-size: .9em; overflow-wrap: anywhere; }
</style></head><body>
<h1>Checks of invariance</h1>
"""


def page(checks: Iterable[Mapping[str, Any]]) -> str:
    r"""The page: how many passed, and a row for each."""
    listed = list(checks)
    rows = [_row(check) for check in listed]
    failed = sum(not check["passed"] for check in listed)
    head = "<tr><th>test</th><th>model</th><th>group</th><th>input</th><th></th><th>relative error</th></tr>"
    summary = f"<p>{len(rows)} checks, {failed} failed.</p>"
    return f"{HEAD}{summary}\n<table><thead>{head}</thead>\n<tbody>\n{''.join(rows)}</tbody></table></body></html>\n"


def _row(check: Mapping[str, Any]) -> str:
    verdict = "passed" if check["passed"] else "failed"
    why = "<br>".join(escape(str(check[key])) for key in ("diagnosis", "lost_at") if check[key])
    shape = " × ".join(str(n) for n in check["input"])
    cells = [
        escape(str(check["test"])) + (f'<div class="why">{why}</div>' if why else ""),
        escape(str(check["model"])),
        escape(str(check["group"])),
        escape(shape),
        f'<span class="{verdict}">{escape(str(check["what"]))}: {verdict}</span>',
        escape(f"{float(check['relative_error']):.2g}"),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"
