"""Pieces of the HTML pages: frame, tables, bars by language. Everything is inside the page; nothing is fetched."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,"Noto Sans","Noto Sans CJK SC",sans-serif;max-width:72rem;margin:0 auto;padding:1rem;
color:#1c1c1c;background:#fff}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .5rem}
h3{font-size:1rem;margin:1.4rem 0 .3rem}p{margin:.5rem 0}.note{color:#555;font-size:.9rem}
.scroll{overflow-x:auto;margin:.5rem 0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.95rem}
.wide{width:100%}th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th{font-weight:600;white-space:normal;vertical-align:bottom}:is(th,td):first-child{text-align:left}
tr.all td{font-weight:600}tr.head td{background:#eef2f6;font-weight:600}
td small{display:block;color:#555;font-size:.79em;font-weight:400;line-height:1.2}td.right{outline:1px solid #888}
td.name{white-space:normal;overflow-wrap:anywhere;min-width:7rem;max-width:16rem}tr.run td{background:#f3f8ee}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.1rem 1rem;margin:.5rem 0}
dt{color:#555}dd{margin:0;overflow-wrap:anywhere}
figure{margin:1rem 0;break-inside:avoid}svg{display:block}figcaption{color:#555;font-size:.9rem}
details{border:1px solid #ddd;border-radius:4px;padding:.4rem .8rem;margin:.5rem 0}
summary{cursor:pointer;overflow-wrap:anywhere}
.text{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.6rem;font-size:.9rem;margin:.4rem 0}
ul.options{list-style:none;margin:.4rem 0;padding:0 0 0 .6rem;font-size:.9rem}ul.options li{overflow-wrap:anywhere}
b.good{color:#1a6e34}b.bad{color:#b3261e}
@media(max-width:40rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.4rem}th,td{padding:.25rem .4rem}
.scroll :is(th,td):first-child:not([colspan]){position:sticky;left:0;background:#fff;
white-space:normal;min-width:6rem;max-width:8rem}
tr.run td:first-child:not([colspan]){background:#f3f8ee}}
@media print{body{max-width:none;padding:0;font-size:10pt}.scroll{overflow:visible;break-inside:avoid}
table,.note,.text,ul.options{font-size:8.5pt}p,.text{margin:.25rem 0}.text{padding:.35rem}
th,td{padding:.15rem .35rem}h2,h3{break-after:avoid}tr{break-inside:avoid}details{break-inside:avoid}
details::details-content{content-visibility:visible;display:block;height:auto}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""


def page(title: str, body: str) -> str:
    """A whole document; `body` is HTML, `title` text."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{esc(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>{esc(title)}</h1>{body}</body></html>\n"
    )


def esc(value: object) -> str:
    """Text as HTML."""
    return html.escape(str(value))


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A list of names and values."""
    return f"<dl>{''.join(f'<dt>{esc(k)}</dt><dd>{esc(v)}</dd>' for k, v in pairs)}</dl>"


def table(head: Sequence[str], lines: Iterable[Sequence[Any] | tuple[str, Sequence[Any]]], *, wide: bool = True) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
      lines: the cells of a row, or (class of the row, cells). A cell is text, or a Cell.
      wide: as wide as the page.
    """
    rows = []
    for line in lines:
        kind, cells = line if len(line) == 2 and not isinstance(line[1], str | Cell) else ("", line)
        mark = f' class="{kind}"' if kind else ""
        rows.append(f"<tr{mark}>{''.join(_cell(c) for c in cells)}</tr>")
    header = "".join(f"<th>{esc(h)}</th>" for h in head)
    look = ' class="wide"' if wide else ""
    return (
        f'<div class="scroll"><table{look}><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


class Cell:
    """A table cell with a second, small line, a background share (0 to 1) or a class; spans `span` columns."""

    def __init__(self, text: object, small: str = "", *, shade: float = 0.0, kind: str = "", span: int = 1):
        self.text, self.small, self.shade, self.kind, self.span = text, small, shade, kind, span


def _cell(c: Any) -> str:
    if not isinstance(c, Cell):
        return f"<td>{esc(c)}</td>"
    more = f' class="{c.kind}"' if c.kind else ""
    more += f' style="background:rgba(31,111,180,{0.6 * c.shade:.2f})"' if c.shade else ""
    more += f' colspan="{c.span}"' if c.span > 1 else ""
    small = f"<small>{esc(c.small)}</small>" if c.small else ""
    return f"<td{more}>{esc(c.text)}{small}</td>"


def bars(title: str, lines: Sequence[tuple[str, dict[str, Any]]], note: str) -> str:
    """Accuracy as bars with their intervals; a dashed line where blind choice would be.

    Args:
      lines: (name, cell of results.json). Lengths are per cent of the page's width, so that text keeps its size on a
        narrow screen.
    """
    row, parts = 44, []
    for k, (name, c) in enumerate(lines):
        y, (low, high) = k * row, (100 * v for v in c["interval95"])
        label = f"{name}  {c['accuracy']:.1%}"
        parts.append(
            f'<text x="0" y="{y + 14}" font-size="14">{esc(label)}</text>'
            f'<text x="100%" y="{y + 14}" font-size="12" fill="#555" text-anchor="end">{c["count"]:,} items</text>'
            f'<rect x="0" y="{y + 19}" width="100%" height="14" fill="#edf1f5"/>'
            f'<rect x="0" y="{y + 19}" width="{100 * c["accuracy"]:.2f}%" height="14" fill="#1f6fb4"/>'
            f'<line x1="{low:.2f}%" x2="{high:.2f}%" y1="{y + 26}" y2="{y + 26}" stroke="#111" stroke-width="2"/>'
        )
        parts += [
            f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{y + 22}" y2="{y + 30}" stroke="#111" stroke-width="2"/>'
            for x in (low, high)
        ]
        if c.get("chance"):
            x = 100 * c["chance"]
            parts.append(
                f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{y + 16}" y2="{y + 36}" stroke="#d1495b" stroke-width="2" '
                'stroke-dasharray="3 2"/>'
            )
    height = len(lines) * row + 20
    for tick, anchor in ((0, "start"), (25, "middle"), (50, "middle"), (75, "middle"), (100, "end")):
        parts.append(
            f'<text x="{tick}%" y="{height - 6}" text-anchor="{anchor}" font-size="11" fill="#555">{tick} %</text>'
        )
    return (
        f'<figure><svg role="img" width="100%" height="{height}" font-family="sans-serif">'
        f"<title>{esc(title)}</title>{''.join(parts)}</svg><figcaption>{esc(title)} ({esc(note)})</figcaption></figure>"
    )
