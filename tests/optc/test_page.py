"""The report's page: what stands in it, and how it behaves in a browser."""

from __future__ import annotations

import html.parser
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from click.testing import CliRunner

import optc
from optc.ir.model import load
from optc.ir.targets import builtin_targets
from optc.page import render
from optc.page.picture import picture
from optc.page.work import work
from optc.passes.base import Attempt, Decision
from optc.tools import report as report_command

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CNN, VIT = DIGITS / "cnn.onnx", DIGITS / "vit.onnx"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def page(model: Path, **options: object) -> str:
    result = optc.compile(model, verify="final", **options)
    target = builtin_targets()[str(options.get("target", "cpu"))]
    return render(result.report, load(model), result.model, target, {"batch": 2})


@pytest.fixture(scope="module")
def vit() -> str:
    return page(VIT)


def drawn(text: str) -> dict:
    found = re.search(r"<script type='application/json' id='graphs'>(.*?)</script>", text, re.DOTALL)
    assert found
    return json.loads(found.group(1))


class _Wellformed(html.parser.HTMLParser):
    """Counts open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "input", "line", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_one_wellformed_file_that_needs_nothing_else(vit: str) -> None:
    parser = _Wellformed()
    parser.feed(vit)
    assert parser.open == []
    without_namespaces = vit.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|src=|<link", without_namespaces)


def test_it_says_what_was_done_and_why(vit: str) -> None:
    for words in (
        f"298 to {len(drawn(vit)['after']['nodes'])}",
        "4 x Attention",
        "skip-layer-norm 8 times",
        "because",
        "passed",
        "not measured",
    ):
        assert words in vit


def test_the_graphs_are_complete(vit: str) -> None:
    data = drawn(vit)
    assert len(data["before"]["nodes"]) == 298
    assert any(node["rules"] and node["sources"] for node in data["after"]["nodes"])
    for graph in data.values():
        for node in graph["nodes"]:
            assert all(graph["nodes"][read]["y"] < node["y"] for read in node["reads"])


def test_no_two_nodes_lie_on_each_other() -> None:
    nodes = picture(load(VIT)).nodes
    places = sorted((node.y, node.x) for node in nodes)
    gaps = [b[1] - a[1] for a, b in itertools.pairwise(places) if a[0] == b[0]]
    assert min(gaps) > 132


def test_names_cannot_become_markup() -> None:
    model = load(CNN).clone()
    model.graph.node(0).name = "</script><script>alert(1)</script>"
    model.graph.name = "<img src=x onerror=alert(1)>"
    result = optc.compile(model)
    text = render(result.report, model, result.model, builtin_targets()["cpu"], {"batch": 1})
    assert "<img" not in text
    assert "<script>alert" not in text


def test_work_is_counted() -> None:
    a, b, y = (onnx_ir.Value(name=name, type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT)) for name in "aby")
    a.shape, b.shape = onnx_ir.Shape(["n", 64]), onnx_ir.Shape([64, 32])
    node = onnx_ir.Node("", "MatMul", [a, b], outputs=[y])
    model = onnx_ir.Model(onnx_ir.Graph([a, b], [y], nodes=[node], opset_imports={"": 18}, name="g"), ir_version=9)
    (found,) = work(model, {"n": 10})
    assert (found.op, found.count) == ("MatMul", 1)
    assert found.operations == 2 * 10 * 64 * 32
    assert found.bytes == 4 * (10 * 64 + 64 * 32 + 10 * 32)
    assert np.isclose(found.intensity, found.operations / found.bytes)


def test_estimates_are_called_estimates_and_a_gpu_has_a_roof() -> None:
    text = page(CNN, target="a100")
    assert "Estimated from shapes" in text
    assert "under the roof of a100" in text
    assert "not measured" in text


def test_a_search_shows_its_budget() -> None:
    result = optc.compile(CNN)
    for kept, error in ((True, 0.01), (False, 0.2)):
        result.report.decisions.append(Decision("int8", ["head"], kept, "measured", error, 1.5 + error, 100))
        result.report.attempts.append(Attempt({"int8": 1}, error, 100, 0.1 + error, 1.5, kept))
    text = render(result.report, load(CNN), result.model, builtin_targets()["cpu"], {"batch": 1})
    assert "Error budget" in text
    assert "dot refused" in text


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    done = CliRunner().invoke(report_command.command, [str(CNN), "--no-measure", "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert target.read_text("utf-8").startswith("<!doctype html>")
    done = CliRunner().invoke(report_command.command, [str(CNN), "-o", str(tmp_path / "page.json")])
    assert isinstance(done.exception, optc.OptcError)


def browse(tmp_path: Path, text: str, script: str, width: int = 1280) -> tuple[dict, str]:
    """Open a page, run a script in it that returns data, and give back the data and what the console said."""
    harness = f"""<script>addEventListener('load', () => {{
        const done = (() => {{ {script} }})();
        document.body.setAttribute('data-result', JSON.stringify(done));
    }});</script></body>"""
    file = tmp_path / "page.html"
    file.write_text(text.replace("</body>", harness), "utf-8")
    command = [
        *(BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=2000"),
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-result="(.*?)"', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1))), "\n".join(re.findall(r".*CONSOLE.*", done.stderr))


@needs_browser
def test_a_click_shows_where_a_node_came_from(tmp_path: Path, vit: str) -> None:
    script = """
        const after = [...document.querySelectorAll('#after .node')];
        const made = after.find((node) => node.querySelector('title').textContent.includes('Attention'));
        made.dispatchEvent(new MouseEvent('click', { bubbles: true }));
        const chosen = document.querySelectorAll('#before .node.chosen').length;
        const about = document.getElementById('about').textContent;
        document.querySelector('#before .node.chosen').dispatchEvent(new MouseEvent('click', { bubbles: true }));
        return { count: after.length, chosen, about, back: document.getElementById('about').textContent,
                 buttons: document.querySelectorAll('.legend button').length };
    """
    found, console = browse(tmp_path, vit, script)
    assert console == ""
    assert found["count"] == len(drawn(vit)["after"]["nodes"])
    assert found["chosen"] > 5
    assert "made by attention" in found["about"]
    assert "became" in found["back"]
    assert found["buttons"] >= 3


@needs_browser
def test_a_search_marks_what_it_finds(tmp_path: Path, vit: str) -> None:
    script = """
        const box = document.getElementById('search');
        box.value = 'softmax';
        box.dispatchEvent(new Event('input'));
        const softmax = document.querySelectorAll('.node.found').length;
        const count = document.getElementById('count').textContent;
        box.value = '';
        box.dispatchEvent(new Event('input'));
        return { softmax, count, none: document.querySelectorAll('.node.found').length };
    """
    found, console = browse(tmp_path, vit, script)
    assert console == ""
    assert found == {"softmax": 4, "count": "4 found", "none": 0}


@needs_browser
def test_it_fits_a_phone(tmp_path: Path, vit: str) -> None:
    script = "return { wide: document.documentElement.scrollWidth, seen: document.documentElement.clientWidth };"
    found, console = browse(tmp_path, vit, script, width=500)
    assert console == ""
    assert found["wide"] <= found["seen"]
