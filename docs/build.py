"""Build the documentation site: `uv run --group docs python docs/build.py`, then open build/site/index.html.

The pages of `docs/` are copied to `build/docs`, and the pages of reference are written beside them from the source. A
warning, a link to nothing or a missing anchor fails the build. It needs no network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from error_page import errors_page
from links import broken_links, to_reference
from reference_pages import api_page, commands_page, models_page, settings_page

ROOT = Path(__file__).parents[1]
PAGES, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"


def main() -> int:
    """Write all pages, run the site generator on them and check the links of the site. Return the exit code."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    write_pages(PAGES)
    command = ["zensical", "build", "--clean", "--strict"]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", finished.stdout).partition("Traceback")[0]
    print(text, end="")
    # Complaints about docstrings are only printed, even with --strict.
    complaints = [line for line in text.splitlines() if re.match(r"griffe|warning", line, re.IGNORECASE)]
    problems = [*complaints, *broken_links(SITE)] if finished.returncode == 0 else []
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems and finished.returncode == 0:
        print(f"{SITE / 'index.html'} (for search: python -m http.server --directory {SITE.relative_to(ROOT)})")
    return finished.returncode or bool(problems)


def write_pages(folder: Path) -> None:
    """Write the pages that are made from the source, below `folder`, and the links of the others to these."""
    for page in folder.rglob("*.md"):
        page.write_text(to_reference(page.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "reference").mkdir(exist_ok=True)
    pages = {
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        "reference/api.md": api_page(),
        "reference/models.md": models_page(),
        "reference/errors.md": errors_page(),
        "changelog.md": root_page("CHANGELOG.md"),
        "contributing.md": root_page("CONTRIBUTING.md"),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def root_page(name: str) -> str:
    """Return a page of the repository's root; its links to files that the site lacks become plain text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    return re.sub(r"\[([^\]]+)\]\((?!http|#|[\w/]+\.(?:md|png|jpg))[^)]+\)", r"\1", text)


if __name__ == "__main__":
    sys.exit(main())
