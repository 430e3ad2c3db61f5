"""From a kit to a picture of two people's concepts, by clicks in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browsing import needs_chromium, serious, window
from end_to_end.federation import ENVIRONMENT, QUICK, create_server, join_tuned, processes
from mos_bench.demo import prepare
from mos_client.page.work import Job, end_join
from mos_common.picture_metadata import read_recipe

pytestmark = [needs_chromium, pytest.mark.timeout(1500)]
BIN = Path(sys.executable).parent
MOST_CLICKS = 15
WAIT_MS = 120_000


class Clicks:
    """A browser's page, whose clicks are counted; every step is looked at by axe."""

    def __init__(self, page, shots):
        self.page, self.shots, self.count, self.troubles = page, shots, 0, []
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda said: self.troubles.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: self.troubles.append(asked.url) if "//127.0.0.1:" not in asked.url else None)

    def click(self, name, role="button"):
        self.count += 1
        self.page.get_by_role(role, name=name).first.click()

    def look(self, name):
        """Judge the page as it is, in light and dark, wide and narrow."""
        for scheme in ("dark", "light"):
            self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # no colour on its way
            self.troubles += serious(self.page)
            self.page.screenshot(path=self.shots / f"{name}-{scheme}.png", full_page=True)
        wide = self.page.viewport_size
        self.page.set_viewport_size({"width": 320, "height": 640})
        if self.page.evaluate("document.documentElement.scrollWidth") > 320:
            self.troubles.append(f"{name} scrolls sideways on a telephone")
        self.page.set_viewport_size(wide)


def opened(home, kit):
    """Start the page; return its process and its address."""
    process = subprocess.Popen(
        [BIN / "mos-client", "open", kit, "--no-browser"],
        cwd=home,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONUNBUFFERED": "1"} | ENVIRONMENT,
    )
    return process, re.search(r"http://\S+", process.stdout.readline())[0]


def close(process):
    """End the page's program; what it has started runs on."""
    process.terminate()
    process.wait(30)
    process.stdout.close()


def refused(address, **headers):
    """Return the status of a request of a stranger."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_from_a_kit_to_a_picture_of_two_people_in_at_most_15_clicks(tmp_path):
    people = prepare(tmp_path, ("coral", "ginger", "tom"))[:2]
    alice, bob = people
    create_server(tmp_path / "server", people, sets=QUICK)
    name = alice.concept.strip("<>")
    state, shots = tmp_path / "mos-state" / name, tmp_path / "shots"
    shots.mkdir()
    with processes() as running, window() as browser:
        running.start("server", ["mos-server", "serve", tmp_path / "server"])
        running.start("bob", join_tuned(bob))
        page, address = opened(tmp_path, alice.kit)
        try:
            clicks = Clicks(browser, shots)
            browser.goto(address)
            assert "token" not in browser.url
            clicks.look("start")
            browser.get_by_label("Its name").fill(name)
            browser.get_by_label("What it is").fill(alice.class_word)
            clicks.click("Go on")
            files = [file for file in sorted(alice.pictures.iterdir()) if file.name != "concept.json"]
            browser.get_by_label("Drop pictures here").set_input_files(files)  # JavaScript sends them
            browser.get_by_text("Used as:").first.wait_for()
            browser.get_by_role("img", name="as it is used").first.wait_for()
            clicks.look("pictures")
            clicks.click("Go on to tuning", "link")
            browser.get_by_text("Nothing speaks against").wait_for()
            browser.get_by_role("spinbutton", name="Steps").fill("40")
            clicks.click("Start tuning")
            browser.get_by_role("button", name="Pause").wait_for()
            clicks.click("Pause")
            browser.get_by_text("paused").wait_for()
            browser.goto("about:blank")  # a page that is open asks again and again
            close(page)  # closing the page stops nothing, and it is found again
            page, address = opened(tmp_path, alice.kit)
            browser.goto(address)
            clicks.click(re.compile("coral|" + name), "link")
            clicks.click("Resume")
            browser.get_by_role("link", name="See what would leave").wait_for()
            browser.get_by_text("drawn after step").first.wait_for()
            browser.get_by_role("img", name="the mean of the last 12").wait_for()
            clicks.look("tuning")
            clicks.click("See what would leave", "link")
            assert not (state / "enrolled.json").exists(), "nothing has left before the button"
            clicks.look("leaving")
            clicks.click(re.compile("Agree and send"))
            browser.get_by_text("You take part").wait_for()
            round_ = ["mos-server", "round", tmp_path / "server", "--wait", "2", "--deadline", "15m", "--keep-all"]
            running.start("operator", round_)
            browser.get_by_role("link", name="Draw with round-001").wait_for()
            browser.get_by_role("cell", name="bob").wait_for()
            clicks.look("round")
            clicks.click("Draw with round-001", "link")
            for someone in people:
                clicks.count += 1
                browser.get_by_label(someone.token).check()
            clicks.click("Draw")
            browser.get_by_role("link", name="Save").wait_for()
            clicks.look("draw")
            assert clicks.count <= MOST_CLICKS
            assert clicks.troubles == []
            recipe = read_recipe(state / "gallery" / "0001" / "picture.png")
            assert {each.token for each in recipe.concepts} == {someone.token for someone in people}
            clicks.click(re.compile("Draw .* again"))
            browser.get_by_text("bit-equal to").first.wait_for()
            draws_regions(browser, clicks, people, state)
            draws_before_and_after(browser, clicks)
            withdraws(browser, clicks, alice)
            port = address.split(":")[2].split("/")[0]
            assert refused(f"http://127.0.0.1:{port}/c/{name}/draw") == 403
            assert refused(address, Host="evil.example") == 421
        finally:
            close(page)
            end_join(state)


def draws_regions(browser, clicks, people, state):
    """A box by the mouse for one, and a painted mask for the other, reach the picture's recipe."""
    for someone in people:
        browser.get_by_label(someone.token, exact=True).check()
    browser.get_by_text("Where each is drawn").click()
    canvas = browser.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    around = canvas.bounding_box()

    def drag(*places):
        (x, y), *others = [(around["x"] + x * around["width"], around["y"] + y * around["height"]) for x, y in places]
        browser.mouse.move(x, y)
        browser.mouse.down()
        for other in others:
            browser.mouse.move(*other)
        browser.mouse.up()

    browser.get_by_label("Of the region").select_option(people[0].token)
    drag((0.05, 0.05), (0.45, 0.95))
    browser.get_by_label("Of the region").select_option(people[1].token)
    browser.get_by_role("button", name="Brush").click()
    drag((0.75, 0.2), (0.75, 0.8))
    browser.get_by_role("button", name="Sketch", exact=True).click()
    drag((0.2, 0.2), (0.3, 0.5), (0.2, 0.8))
    clicks.click("Draw")
    clicks.click("Draw 0003 again")
    browser.get_by_text("bit-equal to").nth(1).wait_for()
    recipe = read_recipe(state / "gallery" / "0003" / "picture.png")
    box, painted = recipe.regions
    assert [control.name for control in recipe.controls] == ["sketch"]
    lines = np.asarray(Image.open(state / "gallery" / "0003" / "sketch.png"))
    assert lines[:, 256:].max() == 0, "nothing was drawn to the right"
    assert 0 < (lines > 127).mean() < 0.02, "white lines on black"
    assert (box.prompt, painted.prompt) == tuple(someone.token for someone in people)
    assert box.box == pytest.approx((0.05, 0.05, 0.45, 0.95), abs=0.01)
    assert painted.mask is not None


def draws_before_and_after(browser, clicks):
    clicks.click("The round", "link")
    clicks.click("Draw it before and after")
    browser.get_by_role("img", name="Before fusion").wait_for()
    browser.get_by_role("img", name="After fusion, in round-001").wait_for()
    clicks.look("before and after")


def withdraws(browser, clicks, alice):
    clicks.click("Withdraw", "link")
    browser.get_by_label("Yes, withdraw").check()
    clicks.click("Withdraw")
    browser.get_by_text(f"{alice.token}: erased at the server").wait_for()


class Keys:
    """A page used by its keyboard alone: every element is reached as a person reaches it."""

    def __init__(self, page):
        self.page = page
        page.set_default_timeout(WAIT_MS)

    def reach(self, role, name):
        """Press Tab until an element has the focus, and see that the focus shows."""
        element = self.page.get_by_role(role, name=name).first
        element.wait_for()
        for _ in range(120):
            self.page.keyboard.press("Tab")
            if element.evaluate("element => element === document.activeElement"):
                style = element.evaluate("element => getComputedStyle(element).outlineStyle")
                assert style != "none", f"{name}: the focus does not show"
                return
        raise AssertionError(f"{name} is never reached")

    def press(self, role, name, key="Enter"):
        self.reach(role, name)
        self.page.keyboard.press(key)

    def write(self, role, name, text):
        self.reach(role, name)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)

    def look_until(self, role, name):
        """Look again, as the page offers, until something is there."""
        end = time.monotonic() + WAIT_MS / 1000
        while not self.page.get_by_role(role, name=name).first.is_visible():
            assert time.monotonic() < end, f"{name} never appears"
            if self.page.get_by_role("link", name="Look again").first.is_visible():
                self.press("link", "Look again")
            time.sleep(1)  # a key returns before the page that it leads to is there


def test_by_keyboard_alone_and_without_javascript(tmp_path):
    """From the kit to a picture of the own concept, and to what would leave."""
    alice = prepare(tmp_path, ("coral", "ginger", "tom"))[0]
    create_server(tmp_path / "server", [alice])  # which makes the kit
    name = alice.concept.strip("<>")
    state = tmp_path / "mos-state" / name
    page, address = opened(tmp_path, alice.kit)
    try:
        with window(java_script_enabled=False) as browser:
            keys = Keys(browser)
            browser.goto(address)
            browser.keyboard.press("Tab")
            browser.keyboard.press("Enter")
            assert browser.url.endswith("#main"), "the first key skips to the content"
            keys.write("textbox", "Its name", name)
            keys.write("textbox", "What it is", alice.class_word)
            keys.press("button", "Go on")
            files = [file for file in sorted(alice.pictures.iterdir()) if file.name != "concept.json"]
            browser.get_by_label("Drop pictures here").set_input_files(files)  # the system's own dialog
            keys.press("button", "Add")
            first = next(file.name for file in files if file.suffix == ".png" and ".mask" not in file.name)
            keys.look_until("img", f"{first} as it is used")
            keys.write("textbox", f"Caption of {first}", "V in the snow")
            keys.press("button", "Save captions")
            keys.look_until("img", f"{first} as it is used")
            assert "in the snow" in browser.get_by_role("textbox", name=f"Caption of {first}").input_value()
            keys.press("link", "Go on to tuning")
            keys.look_until("button", "Start tuning")
            keys.write("spinbutton", "Steps", "12")
            keys.press("button", "Start tuning")
            keys.look_until("link", "See what would leave")
            keys.press("link", "See what would leave")
            browser.get_by_text("bytes").first.wait_for()
            keys.press("link", "Draw")
            keys.press("checkbox", alice.concept, key="Space")
            keys.press("button", "Draw")
            keys.look_until("link", "Save")
            assert read_recipe(state / "gallery" / "0001" / "picture.png").prompt == alice.concept
    finally:
        close(page)
        end_join(state)


def test_hostile_names_and_paths(tmp_path):
    """Markup in names and captions is text; paths lead nowhere."""
    people = prepare(tmp_path, ("coral", "ginger", "tom"))[:1]
    create_server(tmp_path / "server", people)
    page, address = opened(tmp_path, people[0].kit)
    try:
        with window() as browser:
            troubles = []
            browser.on("dialog", lambda shown: troubles.append(shown.message))
            browser.goto(address)
            browser.get_by_label("Its name").fill("cat")
            browser.get_by_label("What it is").fill("<img src=x onerror=alert(1)>")
            browser.get_by_role("button", name="Go on").click()
            if "begin" in browser.url:  # a class word with brackets may be refused, as text
                browser.get_by_label("What it is").fill("cat")
                browser.get_by_label("Its name").fill("cat")
                browser.get_by_role("button", name="Go on").click()
            bad = "x' onerror=alert(1) <script>alert(2)</script>.png"
            data = next(people[0].pictures.glob("*.png")).read_bytes()
            given = [{"name": bad, "mimeType": "image/png", "buffer": data}]
            given.append({"name": "a.txt", "mimeType": "text/plain", "buffer": b"V <script>alert(3)</script>"})
            given.append({"name": "a.png", "mimeType": "image/png", "buffer": data})
            browser.get_by_label("Drop pictures here").set_input_files(given)
            browser.get_by_text("<script>alert(3)</script>").first.wait_for()
            state = tmp_path / "mos-state" / "cat"
            assert all("<" not in file.name for file in (state / "pictures").iterdir())
            port = address.split(":")[2].split("/")[0]
            for path in ("pictures/one/..%2Fsettings.json", "draw/picture/..%2F..%2Fnode_key"):
                answer = browser.request.get(f"http://127.0.0.1:{port}/c/cat/{path}")
                assert answer.status == 404
            assert troubles == []
    finally:
        close(page)
        end = time.monotonic() + 60
        while list((tmp_path / "mos-state").glob("*/page/*.json")) and time.monotonic() < end:
            jobs = [
                Job(tmp_path / "mos-state" / "cat", file.stem)
                for file in (tmp_path / "mos-state").glob("*/page/*.json")
            ]
            if not any(job.runs for job in jobs):
                break
            time.sleep(0.5)
