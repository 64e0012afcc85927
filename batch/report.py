"""A run for people: one page of totals, and sheets of images that open without a server or a script."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..storage import write_whole
from .manifest import BY_NAME, Entry, link_by_name, read_entries, write_failed, write_manifest
from .session import BatchRun

REPORT, SHEETS, THUMBS = "report.md", "sheet", "thumbs"
_PER_PAGE, _SIDE, _ENDS = 200, 256, 12
_MOST_SHEETS = 500
_PICTURES = (".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff", ".avif")
_STYLE = """body{font:14px sans-serif;margin:16px;color:#222}h2{font-size:16px;margin:20px 0 6px}
.row{display:flex;flex-wrap:wrap;gap:8px}figure{margin:0;width:256px}img{max-width:256px;max-height:256px}
figcaption{font-size:12px;overflow-wrap:anywhere}.bad{border:2px solid #c81e1e;padding:6px;min-height:60px}
.best img{outline:3px solid #008060}nav{margin:12px 0}"""


def write_all(run: BatchRun, sheets: bool = True) -> list[Path]:
    """Manifest, failed rows, report, readable names and sheets, from what the journal says now."""
    made = [write_manifest(run)]
    if failed := write_failed(run):
        made.append(failed)
    if run.facts["name"]:
        link_by_name(run, run.facts["name"])
        made.append(run.folder / BY_NAME)
    made.append(write_report(run))
    if sheets:
        made += write_sheets(run)[:1]
    return made


def write_report(run: BatchRun) -> Path:
    """`report.md`."""
    text = "\n".join(_report(run)) + "\n"
    write_whole(run.folder / REPORT, lambda part: part.write_text(text, encoding="utf-8"))
    return run.folder / REPORT


def _report(run: BatchRun) -> list[str]:
    counts = run.journal.counts()
    total, lines = sum(counts.values()), run.journal.lines()
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    yet = [f"# Batch {run.id}", "", f"{lines} lines of the table, {total} different rows: {said}.", ""]
    yet += _seconds(run)
    yet += _failures(run)
    judged = [entry for entry in read_entries(run) if "percent" in entry.metrics]
    if judged:
        yet += _likeness(judged)
    return yet


def _seconds(run: BatchRun) -> list[str]:
    found: dict[str, list[float]] = {}
    spans: dict[str, list[float]] = {}
    for server, seconds, at in run.journal.query("select server, seconds, done_at from row where state='done'"):
        found.setdefault(server, []).append(seconds or 0.0)
        spans.setdefault(server, []).append(at)
    if not found:
        return []
    lines = ["| server | rows | seconds per row: median | 95 % | rows per second |", "| --- | --- | --- | --- | --- |"]
    for server in sorted(found):
        times, span = sorted(found[server]), max(spans[server]) - min(spans[server])
        rate = f"{(len(times) - 1) / span:.3g}" if span > 0 else "–"
        high = times[min(len(times) - 1, int(len(times) * 0.95))]
        lines.append(f"| {_cell(server)} | {len(times)} | {times[len(times) // 2]:.2f} | {high:.2f} | {rate} |")
    return [*lines, ""]


def _failures(run: BatchRun) -> list[str]:
    found = Counter(
        (kind or "unknown", (error or "").split(":")[0][:80])
        for kind, error in run.journal.query("select error_kind, error from row where state='failed'")
    )
    if not found:
        return []
    lines = ["## Failed", "", "| rows | class | what |", "| --- | --- | --- |"]
    lines += [f"| {count} | {_cell(kind)} | {_cell(error)} |" for (kind, error), count in found.most_common(30)]
    return [*lines, ""]


def _likeness(judged: Sequence[Entry]) -> list[str]:
    people: dict[str, list[float]] = {}
    for entry in judged:
        people.setdefault(entry.person or "–", []).append(entry.metrics["percent"])
    lines = ["## Likeness", "", "Percent of real photos' likeness; 0 without a face.", ""]
    lines += ["| person | images | mean | 95 % of the mean | without a face |", "| --- | --- | --- | --- | --- |"]
    for name in sorted(people):
        values = people[name]
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1) / len(values)) ** 0.5 * 1.96
        blind = sum(e.metrics.get("detected") == 0 for e in judged if (e.person or "–") == name)
        lines.append(
            f"| {_cell(name)} | {len(values)} | {mean:.0f} | {mean - spread:.0f} to {mean + spread:.0f} | {blind} |"
        )
    order = sorted(judged, key=lambda entry: -entry.metrics["percent"])
    for title, some in (("Most alike", order[:_ENDS]), ("Least alike", order[_ENDS:][::-1][:_ENDS])):
        if not some:
            continue
        lines += ["", f"## {title}", ""]
        lines += [f"- {e.metrics['percent']:.0f} %: [{_cell(_caption(e))}]({e.file})" for e in some]
    return [*lines, ""]


def _cell(text: str) -> str:
    return html.escape(text).replace("|", "&#124;").replace("\n", " ").replace("[", "&#91;").replace("]", "&#93;")


def _caption(entry: Entry) -> str:
    said = " · ".join(str(value) for value in (entry.person, *entry.shown.values()) if value not in ("", None))
    return said[:160] or f"row {entry.idx}"


# --- sheets


def write_sheets(run: BatchRun) -> list[Path]:
    """`sheet/0001.html` and so on: people one below the other, each image with its likeness."""
    folder = run.folder / SHEETS
    (folder / THUMBS).mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9]*.html"):
        old.unlink()
    pages: list[Path] = []
    page: list[Entry] = []
    total = (run.journal.lines() + _PER_PAGE - 1) // _PER_PAGE
    for entry in read_entries(run):
        page.append(entry)
        if len(page) == _PER_PAGE:
            pages.append(_page(run, folder, page, len(pages) + 1, total))
            page = []
            if len(pages) >= _MOST_SHEETS:
                break
    if page:
        pages.append(_page(run, folder, page, len(pages) + 1, total))
    return pages


def _page(run: BatchRun, folder: Path, shown: Sequence[Entry], number: int, total: int) -> Path:
    links = [f'<a href="{number - 1:04}.html">before</a>'] if number > 1 else []
    links += [f'<a href="{number + 1:04}.html">next</a>'] if number < min(total, _MOST_SHEETS) else []
    nav = f"<nav>Page {number} of {total}. {' · '.join(links)}</nav>"
    rows: dict[str, list[Entry]] = {}
    for entry in shown:
        rows.setdefault(entry.person, []).append(entry)
    body = [nav]
    for person, some in rows.items():
        body += [
            f"<h2>{html.escape(person or 'images')}</h2>",
            '<div class="row">',
            *(_figure(run, folder, e) for e in some),
            "</div>",
        ]
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Batch {html.escape(run.id)}</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join([*body, nav]) + "\n</html>\n"
    )
    path = folder / f"{number:04}.html"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", errors="replace"))
    return path


def _figure(run: BatchRun, folder: Path, entry: Entry) -> str:
    percent = entry.metrics.get("percent")
    words = _caption(entry) + (f" · {percent:.0f} %" if percent is not None else "")
    if entry.state != "done":
        why = f"{entry.state} {entry.facts['error'] or ''}"
        return f'<figure class="bad"><figcaption>{html.escape(words)}<br>{html.escape(why)}</figcaption></figure>'
    source = run.folder / entry.file
    thumb = _thumbnail(source, folder / THUMBS / f"{entry.row_id}.jpg") if source.suffix in _PICTURES else None
    target = html.escape(f"../{entry.file}", quote=True)
    inside = f'<img src="{THUMBS}/{thumb.name}" alt="">' if thumb else html.escape(source.suffix or "no image")
    kind = ' class="best"' if entry.kept else ""
    return f'<figure{kind}><a href="{target}">{inside}</a><figcaption>{html.escape(words)}</figcaption></figure>'


def _thumbnail(source: Path, to: Path) -> Path | None:
    from PIL import Image

    try:
        if to.is_file() and os.path.getmtime(to) >= os.path.getmtime(source):
            return to
        with Image.open(source) as picture:
            small = picture.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            write_whole(to, lambda part: small.save(part, format="JPEG", quality=85))
        return to
    except Exception:  # an image that was damaged since; its place says where it lies
        return None
