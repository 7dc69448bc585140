"""The frame of the report: a page of HTML5 that needs no other file, no script and no network."""

from __future__ import annotations

from collections.abc import Sequence

from regard.results.reports.html import Html, element, joined

STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #555; --paper: #fff; --line: #ddd; --faint: #eee;
  --tile: #f2f5f8; --accent: #0072B2; --warning: #fff3dc; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ink: #e4e6e8; --soft: #a8b0b8; --paper: #15181c; --line: #3b424a; --faint: #2a3037;
    --tile: #21272e; --accent: #7cc4f0; --warning: #3d2f12; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; }
ul { padding-left: 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; margin: 1rem 0;
  padding: 0; list-style: none; }
.tiles li { padding: .6rem .8rem; border-radius: .5rem; background: var(--tile); }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.2; color: var(--accent); white-space: nowrap; }
.warnings { margin: 1rem 0; padding: .6rem .8rem .6rem 2rem; border-left: .3rem solid #E69F00; border-radius: .3rem;
  background: var(--warning); }
.note { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
.tall { max-height: 26rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--faint); }
tbody th { font-weight: 600; max-width: 16rem; overflow-wrap: break-word; }
.numbers td, .numbers thead th + th { text-align: right; font-variant-numeric: tabular-nums; padding-left: .7rem; }
.numbers td, .numbers thead th { white-space: nowrap; }
.facts tbody th { min-width: 8rem; font-weight: 500; color: var(--soft); white-space: nowrap; }
figure { margin: .8rem 0; }
img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: .2rem; }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.cards.small { grid-template-columns: repeat(auto-fill, minmax(min(45%, 11rem), 1fr)); }
.cards figure { margin: 0; }
@media screen and (max-width: 44rem) {
  .chart { overflow-x: auto; }
  .chart img { max-width: none; width: 44rem; }
  .numbers tbody th { max-width: 9rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  .tall { max-height: none; }
  .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; }
  figure, tr, .tiles { break-inside: avoid; }
  .cards { grid-template-columns: 1fr 1fr; }
}
"""


def page(title: str, parts: Sequence[Html | None]) -> str:
    """Return a whole document."""
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            Html(f"<style>{STYLE}</style>"),
        ]
    )
    body = joined([part for part in parts if part is not None])
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head.code}\n</head>\n<body>\n{body.code}\n</body>\n</html>\n'
