"""The pages of ``drloss compare`` and ``drloss demo`` as a browser shows them."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from pathlib import Path

import pytest
from markupsafe import Markup

from drloss.studies.compare.differences import Comparison, conclusion, difference
from drloss.studies.compare.page import write_page
from drloss.studies.report.gallery import gallery
from drloss.studies.report.rendering import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom", "--enable-logging=stderr"]
SCHEMES = {"dark": 0, "light": 1}
WIDTHS = {"phone": 390, "desk": 1200}
MEASURE = Path(__file__).with_name("measure.js").read_text(encoding="utf-8")


def look(folder, scheme, frames):
    """What the browser measures of each (page, width), and what it writes to its console."""
    inner = "".join(f'<iframe style="width:{width}px" srcdoc="{escape(text)}"></iframe>' for text, width in frames)
    outer = folder / "frames.html"
    outer.write_text(
        '<!DOCTYPE html><meta charset="utf-8"><style>iframe { border: 0 }</style>'
        f"<body>{inner}<script>{MEASURE}</script>",
        encoding="utf-8",
    )
    own = [f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
    command = [BROWSER, *FLAGS, *own, outer.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=True)
    dumped = re.search(r"<pre>(.*?)</pre>", done.stdout, flags=re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert dumped, console
    return json.loads(unescape(dumped[1])), console


@pytest.fixture(scope="module")
def pages(contenders, hard_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    facts = {"data": "boards & <parts>: 24 images", "versions": ", ".join(f"package{i} 1.{i}" for i in range(12))}
    spoken = {c.spec: f"DRLoss(pairing=dr, surrogate=logistic, smoothness=6, {c.spec})" for c in contenders}

    def write(file, name, shown, **preset):
        found = [difference(other, shown[0], resamples=20) for other in shown[1:]]
        said = [conclusion(d, len(hard_data)) for d in found]
        settings = {c.spec: {"loss": spoken[c.spec], **preset} for c in shown}
        pictures = gallery(hard_data, [c.runs[0].detections for c in shown], [0])
        write_page(folder / file, Comparison(name, shown, found, said, facts, settings), pictures)

    name = "Focal, DR on coco:images=/data/boards/a_folder/without_any_space/in_it,val=annotations.json"
    write("compare.html", name, contenders, preset="cpu")
    write("demo.html", "Focal and DR", [replace(c, runs=c.runs[:1]) for c in contenders[:2]])
    return {name: (folder / f"{name}.html").read_text(encoding="utf-8") for name in ("compare", "demo")}


@pytest.fixture(scope="module")
def shown(pages, tmp_path_factory):
    """Of each scheme: what was measured of each page and width, and the console."""
    keys = [(name, width) for name in pages for width in WIDTHS]
    found = {}
    for scheme in SCHEMES:
        folder = tmp_path_factory.mktemp(scheme)
        measured, console = look(folder, scheme, [(pages[name], WIDTHS[width]) for name, width in keys])
        found[scheme] = dict(zip(keys, measured, strict=True)), console
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["compare", "demo"])
def test_the_page_has_no_fault(shown, name, width, scheme):
    measured = shown[scheme][0][name, width]
    assert measured["faults"] == {}, json.dumps(measured["faults"], indent=1, ensure_ascii=False)
    assert measured["width"] == WIDTHS[width]
    assert measured["images"] == 1
    assert measured["drawings"] >= 9
    assert measured["texts"] > 200


def test_the_interval_of_the_difference_is_seen_without_scrolling(shown):
    assert shown["light"][0]["compare", "phone"]["shown"][:3] == ["AP", "mean", "interval"]


def test_dark_and_light_differ(shown):
    (dark_ground, dark_ink), (light_ground, light_ink) = (
        [sum(map(int, re.findall(r"\d+", shown[scheme][0]["compare", "desk"][part]))) for part in ("ground", "ink")]
        for scheme in ("dark", "light")
    )
    assert max(dark_ground, light_ink) < 200
    assert min(light_ground, dark_ink) > 600


def test_the_browser_has_nothing_to_say(shown):
    assert [console for _, console in shown.values()] == [[], []]


def svg(inner):
    return f'<svg aria-label="x" viewBox="0 0 390 20">{inner}</svg>'


BROKEN = [
    ("", "<p>All is well.</p>" + svg('<text y="15">x</text>')),
    ("", '<div style="overflow-x:auto"><p style="width:600px;max-width:none">scrolls by itself</p></div>'),
    ("wide", '<div style="width:600px;height:9px"></div>'),
    ("wide", '<p style="position:absolute;left:-20px">x</p>'),
    ("script", "<script></script>"),
    ("script", '<p onclick="x">x</p>'),
    ("elsewhere", '<link rel="icon" href="http://127.0.0.1:9/x.png">'),
    ("elsewhere", '<p style="background:url(http://127.0.0.1:9/x.png)">x</p>'),
    ("elsewhere", "<p style=\"background:image-set('http://127.0.0.1:9/x.png' 1x)\">x</p>"),
    ("elsewhere", "<style>@import 'x.css'</style>"),
    ("image", '<img alt="x" src="data:image/webp;base64,AAAA">'),
    ("image", '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">'),
    ("drawing", '<svg viewBox="0 0 9 9"></svg>'),
    ("drawing", '<svg aria-label="x" style="height:0"></svg>'),
    ("contrast", '<p style="color:#888">x</p>'),
    ("contrast", svg('<text y="15" fill="#888">x</text>')),
    ("small", '<table><tr><td style="font-size:8px">x</td></tr></table>'),
    ("small", svg('<text y="15" font-size="8">x</text>')),
    ("cut", svg('<text x="380" y="15">wider than its drawing</text>')),
    ("cut", '<p style="width:3rem;white-space:nowrap">wider than its paragraph</p>'),
    ("cut", '<p style="height:5px;overflow:hidden">higher than its paragraph</p>'),
    ("overlap", svg('<text y="15">one</text><text x="5" y="15">two</text>')),
    ("id", '<p id="a">x</p><p id="a">x</p>'),
    ("id", svg('<use href="#nothing"/>')),
    ("headings", "<h3>x</h3>"),
    ("headings", "<h1>x</h1>"),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    bodies = [*(("t", f"<h1>t</h1>{body}") for _, body in BROKEN), ("", "<h1>t</h1>")]
    bodies.append(("t", "<h1>t</h1>" + svg('<path d="x"/>')))
    texts = [render("page.html", title=title, body=Markup(body)) for title, body in bodies]
    return look(tmp_path_factory.mktemp("broken"), "light", [(text, 390) for text in texts])


@pytest.mark.parametrize("index", range(len(BROKEN)), ids=lambda i: f"{i}-{BROKEN[i][0]}")
def test_a_fault_is_found_and_no_other(broken, index):
    assert set(broken[0][index]["faults"]) == {BROKEN[index][0]} - {""}


def test_a_page_without_a_title_and_a_drawing_that_is_none_are_found(broken):
    measured, console = broken
    assert set(measured[-2]["faults"]) == {"document"}
    assert console
    assert all("<path>" in line for line in console)
