"""The report of a tiny study: one page that needs no network, its words computed from the numbers."""

import base64
import html
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from baselines.__main__ import main
from baselines.study import report
from baselines.study.parts import PARTS
from baselines.study.parts.base import Finding, Page, Table
from baselines.study.runs import cached_dataset
from studies import few_digits, in_this_process, refused, results_of

SHOWN = ["table", "drift", "decay", "saliency", "tsne", "flow"]
STUDY = ["study", "--epochs", "1", "--seeds", "1", "--groups", "C4", "--parts", *SHOWN]
WEIGHTS = ["--nu", "30", "--nu-distribution", "10", "--nu-normalized-logit", "10"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study, every part of it on few images."""
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        few_digits(patch)
        for name in ("saliency", "tsne", "spectral_decay", "gradient_flow"):
            patch.setattr(f"baselines.study.parts.{name}.SAMPLES", 20)
        patch.setattr("baselines.study.parts.gradient_flow.PER_UNIT", 5.0)
        assert main([*STUDY, *WEIGHTS, "--out", str(out)]) == 0
    cached_dataset.cache_clear()
    return out


@pytest.fixture(autouse=True, scope="module")
def small_pictures() -> Iterator[None]:
    """Pictures of few dots, which are written sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "DPI", 30)
        yield


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to be spoiled, of the parts that are quickly drawn."""
    out = shutil.copytree(finished, tmp_path / "study")
    spoil(out, lambda results: [results["parts"].pop(name) for name in ("decay", "saliency", "tsne")])
    return out


def spoil(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    results = results_of(folder)
    change(results)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "page.html"
    assert main(["report", str(finished), "--out", str(out)]) == 0
    return out


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text without tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words += data


def outside(text: str) -> list[str]:
    """What of a page would have to be fetched."""
    elements = Elements(text).found
    links = [value for _, attributes in elements for key, value in attributes.items() if key in ("src", "href", "data")]
    wanted = [link for link in links if not link.startswith(("data:", "#"))]
    wanted += [tag for tag, _ in elements if tag in ("script", "link", "iframe", "object", "embed", "base")]
    return [*wanted, *re.findall(r"@import|url\(|srcset|https?://", text)]


def test_the_page_is_one_file_that_needs_no_network(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert outside(text) == []
    assert page.stat().st_size < 5_000_000
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    anchors = [a["href"][1:] for tag, a in Elements(text).found if tag == "a"]
    assert set(anchors) <= {a["id"] for _, a in Elements(text).found if "id" in a}
    assert anchors == [name for name in SHOWN if f'href="#{name}"' in text]


@pytest.mark.parametrize(
    "planted",
    [
        *('<img src="https://x.org/a.png" alt="a">', '<img src="a.png" alt="a">', "<script>1</script>"),
        *('<link rel="stylesheet" href="//x.org/a.css">', '<a href="other.html">other</a>'),
        *("<style>@import 'a.css'</style>", "<style>p { background: url(a.png) }</style>"),
    ],
)
def test_something_to_be_fetched_would_be_noticed(planted: str) -> None:
    assert outside(f"<html><body>{planted}</body></html>")


def test_every_picture_has_words_and_is_a_png(page: Path) -> None:
    images = [attributes for tag, attributes in Elements(page.read_text(encoding="utf-8")).found if tag == "img"]
    assert len(images) == 6  # drift, two of decay, saliency, t-SNE, flow
    for image in images:
        assert len(image["alt"]) > 20
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        png = base64.b64decode(data, validate=True)
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert png[-8:-4] == b"IEND"
        width = int.from_bytes(png[16:20], "big")
        assert width == pytest.approx(2 * int(image["width"]), abs=2), "drawn for sharp screens"


def test_title_parts_and_findings(page: Path, finished: Path) -> None:
    text, results = page.read_text(encoding="utf-8"), results_of(finished)
    elements, words = Elements(text), " ".join(Elements(text).words.split())
    assert f"<title>{report.TITLE}</title>" in text
    assert '<html lang="en">' in text
    assert [a["id"] for tag, a in elements.found if tag == "h2"] == [*SHOWN, "configuration"]
    for name in SHOWN:
        shown = PARTS[name].page(results["parts"][name])
        assert PARTS[name].title in words
        assert PARTS[name].claim in words
        assert all(" ".join(finding.text.split()) in words for finding in shown.findings)
        assert re.search(rf'id="{name}".*?class="verdict {str(shown.verdict).replace(" ", "-")}"', text)
    assert "5 trainings of the mlp for R4." in words
    assert "Python 3." in words
    (configuration,) = re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)
    assert json.loads(html.unescape(configuration)) == results["configuration"]


def test_text_is_escaped(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = "<b>bold</b> & <script>alert(1)</script>"
    shown = Page([Finding(planted, (True,))], [Table([planted], [["1"]], planted)])
    monkeypatch.setattr(type(PARTS["table"]), "page", lambda self, results: shown)
    text = page_of(study)
    assert "<b>" not in text
    assert "<script" not in text
    assert text.count(html.escape(planted)) == 3, "finding, head and caption"
    assert planted in Elements(text).words


def page_of(folder: Path, *more: str) -> str:
    assert main(["report", str(folder), *more]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def badge(text: str, name: str) -> str:
    """What a page says of a part's claim."""
    return re.findall(rf'<h2 id="{name}">.*?<span class="verdict [a-z-]+">(.*?)</span>', text)[0]


def test_sentences_and_verdicts_are_computed(study: Path, page: Path) -> None:
    before = page.read_text(encoding="utf-8")
    assert "R4 WT: exactly invariant" in before
    assert "R4: DI of weight tying is 0 at every beta" in before
    assert "R4: sigma max never rises" in before
    assert badge(before, "flow") == "holds"

    def change(results: dict[str, Any]) -> None:
        results["parts"]["table"][0]["LI"] = 0.5
        results["parts"]["table"][0]["consistency"] = 0.877
        results["parts"]["drift"][0]["drift"]["DI"][3] = 0.125
        results["parts"]["flow"][0]["sigma"][-1] = 99.0

    spoil(study, change)
    after = page_of(study)
    assert "R4 WT: exactly invariant" not in after
    assert "12.3 % of moved images change class" in after
    assert "R4: DI of weight tying is at most 0.12 nats." in after
    assert "R4: sigma max RISES at some time" in after
    assert badge(after, "flow") == "partly"


def test_a_part_that_was_not_asked_for_is_left_out(study: Path) -> None:
    words = Elements(page_of(study, "--parts", "table")).words
    assert PARTS["table"].title in words
    assert not any(PARTS[name].claim in words for name in SHOWN[1:])


def test_markdown_with_every_figure_that_it_shows(finished: Path, page: Path, tmp_path: Path) -> None:
    path, again = tmp_path / "docs" / "study.md", tmp_path / "page.html"
    assert main(["report", str(finished), "--out", str(again), "--markdown", str(path)]) == 0
    assert again.read_bytes() == page.read_bytes(), "the same results make the same page"
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", text)
    assert [Path(link).stem for _, link in links] == ["drift", "decay", "directions", "saliency-R4", "tsne-R4", "flow"]
    for words, link in links:
        assert len(words) > 20
        assert (path.parent / link).read_bytes().startswith(b"\x89PNG")
    drawn = {f"study-figures/{figure.name}" for figure in (path.parent / "study-figures").iterdir()}
    assert drawn == {link for _, link in links}
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [f"## {PARTS[name].title}" for name in SHOWN]
    assert "times of the trainings" in text.splitlines()[-1]
    for name in SHOWN:
        shown = PARTS[name].page(results_of(finished)["parts"][name])
        assert all(f"- {finding.text}" in text for finding in shown.findings)
        assert f"| {PARTS[name].title}: {PARTS[name].claim} | **{shown.verdict}** |" in text
        for table in shown.tables:
            assert f"| {' | '.join(table.head)} |\n|{'---|' * len(table.head)}\n| {' | '.join(table.rows[0])} |" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("results.json", text) for text in (None, "[]", "{}", '{"runs": []}', '{"configuration": {')),
        *(("times.json", text) for text in (None, "[]", "{}", "")),
    ],
)
def test_what_is_no_study_is_refused_in_one_line(
    name: str, text: str | None, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study / name
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    line = refused(["report", str(study)], capsys)
    assert line.startswith(("report: expected ", "read_json: expected "))
    assert line.count(str(path)) == 1
    assert not (study / "report.html").exists()


def test_what_cannot_be_read_or_written(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (tmp_path / "nowhere", file):
        line = refused(["report", str(folder)], capsys)
        assert line.startswith("report: expected folder with a finished study, got no ")
        assert str(folder) in line
    assert not (tmp_path / "nowhere").exists()
    assert main(["report", str(study), "--out", str(file / "page.html")]) == 2
    assert str(file) in capsys.readouterr().err


def test_without_jinja(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "jinja2"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    line = refused(["report", str(study)], capsys)
    assert "expected jinja2 to be installed" in line
    assert "pip install" in line
