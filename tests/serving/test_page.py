"""The page in a browser: headless Chromium, where there is one, against a server with small models."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from regard.metrics.masks import encode_masks
from regard.models.build import Model, build
from regard.models.catalog import preset
from regard.structures.categories import Category
from served import Running, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EXAMPLES = Path(regard.__file__).parent / "serving/page/examples"
DROP = """([text, name]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
    for (const kind of ["dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
}"""


PASTE = """([text, name]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, {type: "image/jpeg"}));
    document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: files, bubbles: true}));
}"""
# Chromium's own moving picture in place of a camera, for which it does not ask.
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def random_model(name: str, classes: int, **settings: Any) -> Model:
    torch.manual_seed(0)
    net = build(replace(preset(name), num_classes=classes, **settings), name).eval()
    categories = tuple(Category(i + 1, f"class {i}", is_thing=i < classes - 2) for i in range(classes))
    net.card = replace(net.card, categories=categories)
    return net


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    panoptic = random_model("detr_tiny_panoptic", 5, encoder_layers=1)
    panoptic.card = replace(panoptic.card, panoptic=True)
    nets = {
        "example": regard.load("example"), "panoptic": panoptic,
        "deit": random_model("deit_nano_distilled_patch4_32", 10), "augmented": random_model("aa_resnet20", 10),
    }  # fmt: skip
    with running(nets) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, server: Running) -> Iterator[Any]:
    """Open the page with options of a context; at the end, no error was logged and nobody else was asked."""
    contexts, complaints, hosts = [], [], set()

    def opened(**options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 860}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        page.on("request", lambda one: hosts.add(urlsplit(one.url).netloc))
        page.goto(f"http://127.0.0.1:{server.port}/")
        settled(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    # A refusal of the server is logged by the browser itself; all others are faults of the page.
    assert [line for line in complaints if "status of 422" not in line] == []
    assert {host for host in hosts if host} == {f"127.0.0.1:{server.port}"}


def settled(page: Any) -> None:
    page.wait_for_selector(".pane:not(.busy) .rows li")


def drop(page: Any, data: bytes, name: str) -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name])


def scores(page: Any, pane: int = 0) -> list[float]:
    return [float(text) for text in page.locator(".pane").nth(pane).locator("button.row .score").all_inner_texts()]


def pixels(page: Any, pane: int = 0) -> bytes:
    """What the canvas shows, once it has been drawn."""
    page.wait_for_timeout(100)
    return page.locator(".stage canvas").nth(pane).screenshot()


def shows_map(page: Any, pane: int = 0) -> None:
    page.locator(".legend").nth(pane).wait_for(state="visible")


def hover_first_box(page: Any, server: Running, data: bytes) -> None:
    """Point at the middle of the best box."""
    found = server.post("/v1/predict?model=example", data).json()["results"][0]
    best = max(found["detections"], key=lambda one: one["score"])["box"]
    canvas = page.locator(".stage canvas").first
    area = canvas.bounding_box()
    scale = area["width"] / found["size"]["width"]
    x, y = (best["xmin"] + best["xmax"]) / 2, (best["ymin"] + best["ymax"]) / 2
    canvas.hover(position={"x": scale * x, "y": scale * y})


def test_a_picture_dropped_its_boxes_and_the_threshold(open_page, server):
    page = open_page()
    assert page.title() == "Regard" and scores(page)  # an example is shown before anything is done
    data = (EXAMPLES / "shapes-2.jpg").read_bytes()
    drop(page, data, "mine.jpg")
    expected = server.post("/v1/predict?model=example&threshold=0", data).json()["results"][0]["detections"]
    page.locator('.stage canvas[aria-label*="mine.jpg"]').wait_for()
    settled(page)
    every = sorted((one["score"] for one in expected), reverse=True)
    asked = []
    page.on("request", lambda one: asked.append(one.url))
    for threshold in (0.0, 0.3, 0.7, 0.99):
        page.locator(".threshold input").fill(str(threshold))
        assert scores(page) == pytest.approx([score for score in every if score >= threshold], abs=0.006)
    assert asked == []  # the slider answers by itself


def test_a_picture_pasted(open_page):
    page = open_page()
    page.evaluate(PASTE, [base64.b64encode((EXAMPLES / "shapes-3.jpg").read_bytes()).decode(), "pasted.jpg"])
    page.locator('.stage canvas[aria-label*="pasted.jpg"]').wait_for()
    settled(page)


def test_a_picture_of_the_camera(open_page):
    page = open_page()
    before = pixels(page)
    page.get_by_role("button", name="Camera").click()
    page.get_by_role("button", name="Take picture").click()
    page.locator('.stage canvas[aria-label*="camera.jpg"]').wait_for()
    page.wait_for_selector(".pane:not(.busy)")
    assert pixels(page) != before
    # The camera is let go: its light would stay on.
    assert page.evaluate("document.querySelector('#camera-dialog video').srcObject") is None


def test_a_box_and_a_pixel_show_their_attention(open_page, server):
    page = open_page()
    plain = pixels(page)
    hover_first_box(page, server, (EXAMPLES / "shapes-1.jpg").read_bytes())
    shows_map(page)
    of_box = pixels(page)
    assert of_box != plain
    page.locator(".layer input").fill("0")
    assert page.locator(".layer output").inner_text() == "Decoder 0"
    of_layer = pixels(page)
    page.locator(".head input").fill("2")
    assert len({of_box, of_layer, pixels(page)}) == 3
    page.mouse.move(5, 5)
    assert pixels(page) == plain  # it was only pointed at

    page.get_by_role("radio", name="Pixel").check()
    shows_map(page)  # of the middle
    middle = pixels(page)
    page.locator(".stage canvas").click(position={"x": 20, "y": 20})
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    corner = pixels(page)
    assert corner != middle
    page.locator(".thumbs button").last.click()
    assert page.locator(".head output").inner_text() == "Head 3" and pixels(page) != corner
    page.get_by_role("radio", name="Relevance").check()
    page.locator("button.row").first.click()
    shows_map(page)


def test_the_keyboard_alone(open_page):
    page = open_page()
    canvas = page.locator(".stage canvas")
    canvas.focus()
    plain = pixels(page)
    page.keyboard.press("ArrowRight")
    shows_map(page)
    assert page.locator("button.row[aria-pressed=true]").count() == 1
    first = page.locator("button.row[aria-pressed=true] .name").inner_text()
    assert first in page.locator("#news").inner_text()  # for a screen reader
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert page.locator("button.row[aria-pressed=true]").count() == 0 and pixels(page) == plain
    page.get_by_role("radio", name="Object").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="Pixel").is_checked()
    shows_map(page)
    page.get_by_role("button", name="Python").focus()
    page.keyboard.press("Enter")
    assert 'regard.load("example")' in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    named = "e => (e.ariaLabel || e.textContent || e.labels?.[0]?.textContent || '').trim()"
    controls = [one for one in page.locator("button, input, select, canvas[tabindex]").all() if one.is_visible()]
    unnamed = [one.evaluate("e => e.outerHTML") for one in controls if not one.evaluate(named)]
    assert unnamed == []


def test_two_models_side_by_side(open_page):
    page = open_page()
    page.get_by_role("radio", name="Pixel").check()
    shows_map(page)
    page.get_by_role("button", name="Compare").click()
    page.locator(".pane").nth(1).locator(".model").select_option("augmented")
    shows_map(page, 1)
    before = pixels(page, 1)
    page.locator(".stage canvas").first.click(position={"x": 30, "y": 30})
    page.wait_for_timeout(700)
    assert pixels(page, 1) != before  # the same pixel in both
    page.get_by_role("button", name="Close").click()
    assert page.locator(".pane").count() == 1


@pytest.mark.parametrize(
    "model, views",
    [
        ("panoptic", ["Segment", "Pixel", "Relevance"]),
        ("deit", ["Class token", "Distillation token", "Pixel", "Rollout", "Relevance"]),
        ("augmented", ["Pixel", "Relevance"]),
    ],
)
def test_each_family_answers_all_its_questions(open_page, model, views):
    page = open_page()
    page.locator(".model").select_option(model)
    settled(page)
    assert page.locator(".views span").all_inner_texts() == views
    if model == "panoptic":
        page.locator(".threshold input").fill("0")
        page.locator("button.row").first.wait_for()
    seen = set()
    for view in views:
        page.get_by_role("radio", name=view).check()  # which takes the map of the question before away
        if view == "Segment" or (model == "panoptic" and view == "Relevance"):
            page.locator("button.row").first.click()
        shows_map(page)
        for _ in range(50):  # a busy machine draws it later
            if (shown := pixels(page)) not in seen:
                break
        seen.add(shown)
    assert len(seen) == len(views)
    assert page.locator("#problem").is_hidden()


def test_a_bad_file_is_one_line_and_loses_nothing(open_page, server):
    page = open_page()
    before = scores(page)
    data = (EXAMPLES / "shapes-1.jpg").read_bytes()[:3000].replace(b"\xff\xd8", b"??")
    drop(page, data, "broken.jpg")
    page.locator("#problem").wait_for(state="visible")
    assert page.locator("#problem-text").inner_text() == server.post("/v1/predict?model=example", data).error["message"]
    assert scores(page) == before and "shapes-1.jpg" in page.locator(".stage canvas").get_attribute("aria-label")
    drop(page, (EXAMPLES / "shapes-3.jpg").read_bytes(), "good.jpg")
    page.locator("#problem").wait_for(state="hidden")


def test_json_code_and_picture_to_take_along(open_page, server, tmp_path):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.locator("button.row").first.click()
    shows_map(page)
    page.get_by_role("button", name="Copy JSON").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = json.loads(page.evaluate("() => navigator.clipboard.readText()"))
    data = (EXAMPLES / "shapes-1.jpg").read_bytes()
    threshold = copied["threshold"]
    assert copied["results"] == server.post(f"/v1/predict?model=example&threshold={threshold}", data).json()["results"]

    with page.expect_download() as saved:
        page.get_by_role("button", name="Save picture").click()
    saved.value.save_as(tmp_path / "saved.png")
    assert Image.open(tmp_path / "saved.png").size == (1000, 1000)

    page.get_by_role("button", name="Python").click()
    code = page.locator("#code-dialog code").inner_text()
    page.get_by_role("button", name="Close").click()
    Image.open(EXAMPLES / "shapes-1.jpg").save(tmp_path / "shapes-1.jpg", quality=95)
    lines = code.replace('"shapes-1.jpg"', repr(str(tmp_path / "shapes-1.jpg"))).replace(".show()", ".size")
    found: dict[str, Any] = {}
    exec(lines.replace("regard.explain", "drawn = regard.explain"), found)  # the three lines run as they are
    assert "decoder" in code and found["drawn"][0] > 0


def test_masks_are_read_as_they_are_written(open_page):
    page = open_page()
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (40, 33)):
        mask = random.random((height, width)) < 0.5
        mask[: height // 2] = mask[0, 0]  # long runs too
        (encoded,) = encode_masks(torch.from_numpy(mask)[None])
        read = page.evaluate("async mask => [...(await import('/masks.js')).readMask(mask).inside]", encoded)
        assert np.array_equal(np.array(read).reshape(height, width), mask)


def test_a_token_is_asked_for_and_kept_for_the_page(browser, tmp_path):
    (tmp_path / "tokens").write_text("right\n")
    with running({"example": regard.load("example")}, token_file=tmp_path / "tokens") as server:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        for token in ("wrong", "right"):
            page.locator("#token-dialog input").fill(token)
            page.get_by_role("button", name="Continue").click()
        settled(page)
        assert scores(page)
        page.close()


def test_a_phone_shows_all_without_scrolling_sideways(browser, server):
    page = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    settled(page)
    page.locator("button.row").first.tap()
    shows_map(page)
    page.get_by_role("button", name="Compare").tap()
    settled(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    page.context.close()
