"""The page of a scale: its text, and in a real browser with the network off."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import IdCheck
from mar_bench.pipeline.pictures import FRAMES, UNKNOWN, _frames, _thinned, write_page
from mar_bench.pipeline.progress import states
from mar_bench.pipeline.serve import PageServer
from mar_bench.pipeline.store import Places
from mar_bench.records.record import RecordFolder
from mar_bench.report.page.pictures import reduced
from mar_bench.utils.errors import UserError

pytestmark = pytest.mark.smoke
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def written(table1, tmp_path_factory) -> Path:
    """The page of Table 1 at smoke scale, written by the command."""
    folder = tmp_path_factory.mktemp("page")
    places = ["--runs", str(table1 / "runs"), "--records", str(table1 / "records"), "--reports", str(folder)]
    words = [sys.executable, "-m", "mar_bench", "report", "table1", "fig5", "--scale", "smoke", *places]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {folder}/smoke/index.html\n"
    return folder / "smoke/index.html"


def test_page_holds_everything_and_needs_no_network(written, table1):
    text = written.read_text()
    without_plotly = re.sub(r"<script>.*?plotly\.js.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", without_plotly)
    assert text.count('<section id="') == text.count('class="experiment"') + 1, "claims, then experiments"
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.S)
    found = json.loads(data)
    records = {path.stem for path in (table1 / "records").glob("*.json")}
    assert {*found["records"]} <= records and len(found["records"]) >= 16, "tables share records"
    assert {"table1", "table1-losses"} <= found["figures"].keys()
    assert found["copies"]["table1"]["LaTeX"].startswith("% \\usepackage{booktabs,graphicx}")
    of_records = (written.parent / found["recordsAt"]).resolve()
    assert of_records == (table1 / "records").resolve()
    assert len(found["sprites"]) > 16, "samples, strips and reconstructions"
    assert "training images" in text and "holds" in text


def test_a_page_without_runs_has_no_images(table1, tmp_path):
    experiments = [load_experiment("table1", "smoke")]
    records = RecordFolder(table1 / "records", IdCheck())
    path = write_page(experiments, "smoke", Places(tmp_path / "none", table1 / "records"), records, tmp_path)
    assert path.name == "index.html" and 'data-sprite="' not in path.read_text()
    changed = [replace(experiments[0], overrides=("train.steps=80",))]
    path = write_page(changed, "smoke", Places(tmp_path / "none", table1 / "records"), records, tmp_path)
    assert path.name == "index+train.steps=80.html" and "with train.steps=80" in path.read_text()
    with pytest.raises(UserError, match="no records at scale smoke in .*none"):
        write_page(experiments, "smoke", Places(tmp_path, tmp_path / "none"), RecordFolder(tmp_path / "none"), tmp_path)


def test_filmstrip_shows_more_and_more_of_the_image():
    spec = load_experiment("table1", "smoke").rows["mar/diff/guided"]
    image = np.zeros((1, 16, 16), np.uint8)
    for kind in ("raster", "random"):
        frames = _frames(spec, kind, image)
        known = [(frame == 0).mean() for frame in frames]
        assert len(frames) == FRAMES and known == sorted(known) and known[-1] == 1 > known[0] > 0
        if kind == "raster":
            first = frames[0][0] == 0
            assert first.any(1).argmin() > 0 and (frames[0][0][-1] == UNKNOWN).all(), "from the top"


def test_curves_are_thinned_and_large_images_reduced():
    curve = [(step, float(step)) for step in range(1000)]
    thin = _thinned(curve)
    assert len(thin) <= 60 and thin[0] == curve[0] and thin[-1] == curve[-1] and not _thinned([])
    images = np.arange(256 * 256, dtype=np.uint32).reshape(1, 1, 256, 256).astype(np.uint8)
    small = reduced(images)
    assert small.shape == (1, 1, 64, 64) and small.dtype == np.uint8
    assert reduced(small) is small


def test_server_is_this_machines_alone_and_follows_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr("mar_bench.pipeline.serve.LOOK_SECONDS", 0.05)
    places = Places(tmp_path / "runs", tmp_path / "records")
    places.records.mkdir()
    made = []

    def make() -> str:
        made.append(1)
        return f"page {len(made)}"

    def get(path: str, **headers: str) -> str:
        request = urllib.request.Request(server.address + path, headers=headers)
        return urllib.request.urlopen(request, timeout=10).read().decode()

    with PageServer(0, places, make) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.address.startswith("http://127.0.0.1:")
        assert get("") == "page 1" and json.loads(get("state")) == {"version": 0, "runs": []}
        (places.runs / "state").mkdir(parents=True)
        (places.runs / "state/here-1.json").write_text('["1/2, about 3 s left", "train a 5/10"]')
        assert json.loads(get("state"))["runs"] == [["1/2, about 3 s left", "train a 5/10"]]
        os.utime(places.runs / "state/here-1.json", (1, 1))
        assert states(places.runs) == [], "an old one is of a run that has died"
        (places.records / "aaaaaaaaaaaa.json").write_text("{}")
        for _ in range(200):
            if json.loads(get("state"))["version"]:
                break
            time.sleep(0.05)
        assert get("") == "page 2" and get("records/aaaaaaaaaaaa.json") == "{}"
        for path in ("records/../../etc/passwd", "nothing"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(path)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get("", Host="example.org")
        server.shutdown()


def test_curves_of_a_row_in_the_terminal_and_as_a_picture(table1, tmp_path):
    places = ["--scale", "smoke", "--runs", str(table1 / "runs"), "--records", str(table1 / "records")]
    words = ["curves", "table1/mar/diff/guided", "table1/mar/ce/guided", *places]
    text = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert text.count("oo table1/mar/diff/guided") == 2 and "xx table1/mar/ce/guided" in text, "losses and distances"
    assert "\x1b" not in text
    CliRunner().invoke(app, [*words, "--save", str(tmp_path / "c.svg")], catch_exceptions=False)
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
    for more, told in ((["--save", "c.jpg"], "end it with .png"), (["train.steps=9"], "nothing is trained")):
        assert told in str(CliRunner().invoke(app, [*words, *more]).exception)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, written):
    """The page in a browser without a network; no error may appear on its console."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}, color_scheme="light")
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(written.as_uri())
    page.wait_for_selector("#top > .figure .main-svg")
    yield page
    context.close()
    assert problems == []


def test_sort_a_table(opened):
    table = opened.locator("#table1 table.sortable").first
    column = table.locator("thead tr:last-child th", has_text="FD").first
    place = column.evaluate("th => th.cellIndex")

    def numbers() -> list[float]:
        texts = table.locator("tbody tr").evaluate_all(f"rows => rows.map(r => r.cells[{place}].textContent)")
        return [float(text.split()[0]) for text in texts]

    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "ascending" and numbers() == sorted(numbers())
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending" and numbers() == sorted(numbers(), reverse=True)


def test_hover_over_a_point_and_open_its_record(opened):
    figure = opened.locator("#table1 .figure").first
    figure.scroll_into_view_if_needed()
    figure.locator(".scatterlayer .point").first.wait_for()
    figure.locator(".scatterlayer .point").first.hover(force=True)
    hover = figure.locator(".hoverlayer .hovertext").first
    hover.wait_for()
    assert "±" in hover.text_content() and "seed" in hover.text_content()
    opened.mouse.down()
    opened.mouse.up()
    dialog = opened.locator("dialog#record[open]")
    dialog.wait_for()
    assert "commit" in dialog.text_content() and "run table1 --scale smoke" in dialog.text_content()
    opened.keyboard.press("Escape")
    opened.locator("#table1 > details", has_text="Records").last.locator("summary").click()
    opened.locator("#table1 [data-record]").first.click()
    dialog.wait_for()
    assert dialog.locator("h3").text_content().startswith("Record ")


def test_copy_a_table_as_latex(opened):
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.locator("#table1 [data-copies] button", has_text="LaTeX").click()
    opened.locator("#table1 [data-copies] button", has_text="Copied").wait_for()
    assert "\\toprule" in opened.evaluate("navigator.clipboard.readText()")


def test_slider_between_two_rows(opened):
    opened.locator("#table1 summary", has_text="Samples").click()
    slider = opened.locator("#table1 .compare input")
    slider.fill("20")
    assert "20%" in opened.locator("#table1 .pair").get_attribute("style")
    opened.locator("#table1 .compare select").last.select_option(index=5)
    left, right = opened.locator("#table1 .pair img").evaluate_all("all => all.map(e => e.naturalWidth && e.src)")
    assert left.startswith("data:image/") and right.startswith("data:image/") and left != right


def test_footnote_opens_the_notes(opened):
    opened.locator("#table1 .figure").first.scroll_into_view_if_needed()
    opened.locator("#table1 .figure .main-svg").first.wait_for()  # it may move what is below it
    note = opened.locator("#table1 thead sup a").first
    target = opened.locator(note.get_attribute("href"))
    assert not target.is_visible()
    note.click()
    target.wait_for(state="visible")


def test_switch_theme_and_print(opened, tmp_path):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened.evaluate(ground)
    opened.locator("#theme").click()
    assert opened.evaluate(ground) != light
    assert opened.pdf(path=tmp_path / "page.pdf")[:5] == b"%PDF-"


def test_fits_a_phone(opened):
    opened.set_viewport_size({"width": 390, "height": 800})
    opened.reload()
    opened.wait_for_selector("#top > .figure .main-svg")
    wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391)"
    outside = f"{wide}.filter(e => !e.closest('.wide') && e.offsetParent).map(e => e.outerHTML.slice(0, 100))"
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390, opened.evaluate(outside)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_violation(opened, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    if theme == "dark":
        opened.locator("#theme").click()
    found = axe.Axe().run(opened).response["violations"]
    assert {v["id"]: [n["html"] for n in v["nodes"]] for v in found if v["impact"] in ("serious", "critical")} == {}
