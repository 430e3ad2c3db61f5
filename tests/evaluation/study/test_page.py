"""The page in a real browser: the keyboard answers everything, nothing is lost or sent."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from evaluation.study.browser import browser, driver
from mos_bench.study.answers import read_answers

pytestmark = pytest.mark.skipif(
    driver() is None and not os.environ.get("CI"), reason="needs chromium and chromedriver (apt-get install them)"
)


@pytest.fixture
def window(tmp_path):
    with browser(tmp_path) as window:
        yield window


def order(window) -> list[list[str]]:
    return window.run("return order.map(trial => [trial.trial, ...trial.pictures])")


def test_the_keyboard_answers_undoes_resumes_and_saves(study, window, tmp_path):
    out, key = study
    page = out / "page" / "index.html"
    window.open(page)
    asked = order(window)
    assert sorted(trial for trial, *_ in asked) == sorted(trial.trial for trial in key.trials)
    window.press("Left")  # nothing is answered before it has begun
    window.press("Enter", "Left", "2", "3", "Backspace", "Down", "1", "Right", "u")
    assert window.run("return document.getElementById('done').textContent") == "4 of 10"
    window.open(page)  # as after the browser was closed: same rater, same order, next question
    assert order(window) == asked
    assert window.run("return document.getElementById('done').textContent") == "4 of 10"
    window.press(*["Right", "Left"] * 3)
    assert window.run("return document.activeElement.id") == "end-title"
    window.press("Left")  # after the end, only undoing is possible
    window.press("Tab", "Enter")
    saved = wait_for(tmp_path / "downloads")
    assert json.loads(saved.read_text()) == json.loads(window.run("return document.getElementById('answers').value"))
    rater = read_answers(saved, key)
    made_by = {trial.trial: trial.pictures for trial in key.trials}
    left_right = [(made_by[trial][left], made_by[trial][right]) for trial, left, right in asked]
    expected = [(left_right[0][0], left_right[0][1]), ("neither", left_right[1][0])]
    expected += [(right, left) for left, right in left_right[2:]]
    given = [(rater.chosen[trial, "same"], rater.chosen[trial, "text"]) for trial, *_ in asked]
    assert given == expected
    assert [entry["left"] for entry in json.loads(saved.read_text())["answers"]] == [left for _, left, _ in asked]


def test_each_rater_has_an_own_order_and_own_sides(study, window):
    orders, sides = set(), set()
    for _ in range(8):
        window.open(study[0] / "page" / "index.html")
        window.run("localStorage.clear()")
        orders.add(tuple(trial for trial, *_ in order(window)))
        sides.update((trial, left) for trial, left, _ in order(window))
    assert len(orders) > 4
    assert len(sides) > 5  # five trials always on one side would give five


def test_nothing_but_the_pages_own_pictures_is_asked_for(study, window):
    asked: list[str] = []

    class Recording(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

    folder = study[0] / "page"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Recording, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        window.visit(f"http://127.0.0.1:{server.server_port}/index.html")
        window.press("Enter", *["Left"] * 10)
        assert window.run("return document.getElementById('left').naturalWidth") == 16
        refused = window.run("return fetch('/index.html').then(() => 'read', () => 'refused')")
        server.shutdown()
    assert refused == "refused"
    pictures = {f"/pictures/{file.name}" for file in (folder / "pictures").iterdir()}
    assert set(asked) == {"/index.html", *pictures}


def test_a_telephone_shows_both_pictures_without_scrolling_sideways(study, window):
    window.command(
        "Emulation.setDeviceMetricsOverride", {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    )
    window.open(study[0] / "page" / "index.html")
    window.press("Enter")
    assert window.run("return document.documentElement.scrollWidth <= 320")
    assert window.run("return document.getElementById('right').getBoundingClientRect().right <= 320")


def test_a_browser_that_keeps_nothing_says_so_and_still_works(study, window):
    script = "Storage.prototype.setItem = () => { throw new Error('full'); };"
    window.command("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    window.open(study[0] / "page" / "index.html")
    assert "in one go" in window.run("return document.getElementById('storage').textContent")
    window.press("Enter", "Left")
    assert window.run("return document.getElementById('done').textContent") == "1 of 10"


def wait_for(folder, seconds: float = 20.0):
    """Return the one finished download."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := list(folder.glob("answers-*.json")):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"nothing was saved in {folder}")
