"""Make the pictures of the page of `regard serve`: `python docs/serve_pictures.py`. With Chromium."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent / "pictures"
DESK, PHONE = (1280, 830), (390, 844)


def main() -> None:
    """Serve the example, and photograph the page in the browser."""
    command = [sys.executable, "-m", "regard", "serve", "example", "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        address = server.stdout.readline().split(" at ")[1].strip()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, steps, size, scheme in (
                ("object", ["circle"], DESK, "light"),
                ("pixel", ["Pixel"], DESK, "dark"),
                ("two", ["circle", "Compare"], (1280, 1180), "light"),
                ("phone", ["triangle"], PHONE, "light"),
            ):
                context = browser.new_context(
                    viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=size == PHONE,
                    is_mobile=size == PHONE,
                )  # fmt: skip
                photograph(context.new_page(), address, steps, PICTURES / f"serve_{name}.jpg")
                context.close()
            browser.close()
    finally:
        server.terminate()
        server.wait()


def photograph(page: Any, address: str, steps: list[str], path: Path) -> None:
    """Open the page, choose the rows, questions and buttons named in `steps`, and save what is seen."""
    page.goto(address)
    page.wait_for_selector(".pane:not(.busy) .rows li")
    for step in steps:
        if step == "Pixel":
            page.get_by_role("radio", name=step).check()
        elif step == "Compare":
            page.get_by_role("button", name=step).click()
            page.locator(".pane").nth(1).locator(".legend").wait_for(state="visible")
        else:
            page.get_by_role("button", name=step).first.click()
    page.locator(".legend").first.wait_for(state="visible")
    page.mouse.move(1, 1)
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(path, quality=85, subsampling=0, optimize=True)  # a quarter of the PNG


if __name__ == "__main__":
    main()
