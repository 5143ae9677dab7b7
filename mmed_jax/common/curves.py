"""Curves of named series as SVG inside a page: readable as they stand, and with values, log axis, smoothing, epochs and
a legend that hides series where scripts run (assets/templates/curves.js, which draws by the same rules).

What is too much for a page is thinned: of every stretch the first, last, least and greatest point stay.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from markupsafe import Markup

from mmed_jax.common.html_page import environment

MOST_POINTS = 1200  # of a series in a page
WIDTH, HEIGHT = 440, 260  # of the view box: at this size text can be read on a phone
_LEFT, _TOP, _RIGHT, _BOTTOM = 58, 10, 416, 226  # of the box that is drawn in
_LARGEST, _LEAST = 1e100, 1e-100  # of what is drawn; of what has a place in a logarithmic axis
# Spans that are none: as a share of the values (or in powers of ten), and whatever the values are.
_FLAT, _SPAN = 1e-12, 1e-290
_COLOURS, _DASHES = 8, 4  # as many as style.css has
_SMOOTHED_FROM = 200  # points; fewer are no cloud
_SMOOTHING = 5  # where the slider stands then


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one curve.

    x: ascending. y: NaN, infinities and what is larger than any axis are marked, not drawn. colour: series with the
    same word share a colour and differ by dashes; "" = a colour of its own. smooth: False for what has no noise, as a
    schedule. epochs_per_x: x times this is epochs; None = not known.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = ""
    smooth: bool = True
    epochs_per_x: float | None = None


@dataclasses.dataclass(frozen=True)
class Mark:
    """An upright line at x; marks of one text are named once."""

    x: float
    text: str
    epochs_per_x: float | None = None


def curves(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    x_name: str = "step",
    marks: Sequence[Mark] = (),
    log: bool = False,
) -> Markup:
    """One plot, a <figure>, for a page whose template sets scripts to ["curves.js"]; "" where no series has a point.

    Args:
      unit: of y. x_name: what x counts. log: begin with a logarithmic y axis (values above 0).
    """
    shown = [s for s in series if len(s.x)]
    if not shown:
        return Markup("")
    colours = list(dict.fromkeys(s.colour or s.name for s in shown))
    lines, seen = [], dict.fromkeys(colours, 0)
    smoothing = _SMOOTHING if any(s.smooth and len(s.x) > _SMOOTHED_FROM for s in shown) else 0
    for s in shown:
        word = s.colour or s.name
        lines.append(_Line(s, colours.index(word) % _COLOURS, seen[word] % _DASHES, smoothing if s.smooth else 0))
        seen[word] += 1
    log = log and any(v > _LEAST for line in lines for v in line.y)
    box = _Box(extent([x for line in lines for x in line.x] or [0.0]), _y_range(lines, log), log)
    low, high = box.x_range
    texts = list(dict.fromkeys(m.text for m in marks))
    template: Any = environment().get_template("curves.html").module
    return template.figure(
        {
            "title": title,
            "unit": unit,
            "x_name": x_name,
            "log": log,
            "smoothing": smoothing,
            "size": (WIDTH, HEIGHT),
            "box": (_LEFT, _TOP, _RIGHT, _BOTTOM),
            "x_ticks": [(box.to_x(v), axis_label(v)) for v in ticks(*box.x_range, whole=_are_whole(lines))],
            "y_ticks": [(box.to_y(v), axis_label(v)) for v in ticks(*box.y_range, log)],
            "lines": [line.drawn(box) for line in lines],
            "marks": [(m, box.to_x(m.x), texts.index(m.text) % 2) for m in marks if low <= m.x <= high],
            "mark_texts": texts,
            "bad": any(line.bad for line in lines),
        }
    )


# What is drawn. curves.js has the same functions by the same names; a test holds them against each other.


def extent(values: Sequence[float], log: bool = False, margin: float = 0.0) -> tuple[float, float]:
    """(low, high) of the values with `margin` of their span on both sides, in logarithms where `log`; never empty.

    Values that differ by their rounding alone are one value: between them there is no room for ticks.
    """
    low, high = float(min(values)), float(max(values))
    if log:
        low, high = math.log10(low), math.log10(high)
    size, least = max(abs(low), abs(high)), _FLAT if log else _SPAN
    if high - low <= max(_FLAT * size, least):
        room = size / 2 if size > least else 0.5
        low, high = low - room, high + room
    low, high = low - margin * (high - low), high + margin * (high - low)
    return (10.0**low, 10.0**high) if log else (low, high)


def ticks(low: float, high: float, log: bool = False, whole: bool = False) -> list[float]:
    """Round numbers from low to high, some five of them; of a logarithmic axis powers of ten, or few of their
    multiples. whole: of whole things, as steps are."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = max(1, math.ceil(len(powers) / 6))
        for factors in ((1,), (1, 3), (1, 2, 5)):
            chosen = [f * 10.0**p for p in powers if p % every == 0 for f in factors if low <= f * 10.0**p <= high]
            if len(chosen) >= 3:
                return chosen
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def label(v: float) -> str:
    """A number as one reads it: 0.25, 12,345, 2e-5."""
    size = abs(v)
    if size and (size < 1e-3 or size >= 1e7):
        mantissa, _, power = f"{v:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{v:,.0f}" if size >= 1e4 else f"{float(f'{v:.4g}'):,}".removesuffix(".0")


def axis_label(v: float) -> str:
    """A number as it stands at an axis, where there is little room: 0.25, 1,500, 150k, 2M, 2e-5."""
    size = abs(v)
    if 1e4 <= size < 1e9:
        return label(v / 1e6) + "M" if size >= 1e6 else label(v / 1e3) + "k"
    return label(v)


def half_window(count: int, smoothing: int) -> int:
    """Neighbours on each side that a point is smoothed over; 0 = not at all. smoothing: 0 to 20."""
    return count * smoothing // 300


def rolling_median(ys: Sequence[float], half: int) -> list[float]:
    """The median of each value and of `half` neighbours on each side, fewer at the ends."""
    return [statistics.median(ys[max(0, i - half) : i + half + 1]) for i in range(len(ys))]


def path(xs: Sequence[float], ys: Sequence[float]) -> str:
    """A path of SVG through points of the view box."""
    return " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(zip(xs, ys, strict=True)))


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most `most` of the points: of every stretch the first, the last, the least and the greatest."""
    if len(xs) <= most:
        return list(xs), list(ys)
    stretches = max(1, most // 4)
    kept: set[int] = set()
    for k in range(stretches):
        stretch = range(k * len(xs) // stretches, (k + 1) * len(xs) // stretches)
        kept |= {stretch[0], stretch[-1], min(stretch, key=ys.__getitem__), max(stretch, key=ys.__getitem__)}
    chosen = sorted(kept)
    return [xs[i] for i in chosen], [ys[i] for i in chosen]


class _Line:
    """A series, thinned, with its colour and dashes."""

    def __init__(self, series: Series, colour: int, dash: int, smoothing: int):
        good = [(x, y) for x, y in zip(series.x, series.y, strict=True) if abs(y) < _LARGEST]
        self.x, self.y = thinned([x for x, _ in good], [y for _, y in good])
        bad = [x for x, y in zip(series.x, series.y, strict=True) if not abs(y) < _LARGEST]
        self.bad = bad[:: max(1, len(bad) // 100)]  # where a run has gone wrong for good, crosses need not all stand
        self.series, self.colour, self.dash, self.smoothing = series, colour, dash, smoothing

    def drawn(self, box: "_Box") -> dict[str, Any]:
        """What the template needs."""
        half = half_window(len(self.y), self.smoothing)
        smoothed = rolling_median(self.y, half) if half else []
        return {
            "name": self.series.name,
            "class": f"c{self.colour} dash{self.dash}",
            "x": " ".join(f"{v:.15g}" for v in self.x),
            "y": " ".join(f"{v:.7g}" for v in self.y),
            "bad": " ".join(f"{v:.15g}" for v in self.bad),
            "epochs": self.series.epochs_per_x,
            "smooth": self.series.smooth,
            "raw": box.path(self.x, self.y),
            "smoothed": box.path(self.x, smoothed) if smoothed else "",
            # Zero-length strokes with round ends: dots.
            "dots": " ".join(f"M{x:.1f} {y:.1f}h0" for x, y in box.places(self.x, self.y)) if len(self.y) <= 40 else "",
            "crosses": " ".join(f"M{box.to_x(x) - 3:.1f} {_TOP + 2}l6 6m-6 0l6 -6" for x in self.bad),
            "last": label(self.y[-1]) if self.y else "",
        }


def _y_range(lines: Sequence[_Line], log: bool) -> tuple[float, float]:
    values = [v for line in lines for v in line.y if v > _LEAST or not log]
    return extent(values or [0.0], log and bool(values), 0.05)


def _are_whole(lines: Sequence[_Line]) -> bool:
    return all(float(x).is_integer() for line in lines for x in line.x)


class _Box:
    """Where numbers lie in the view box."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float], log: bool):
        self.x_range, self.y_range, self.log = x_range, y_range, log
        self._scale: Callable[[float], float] = math.log10 if log else float

    def to_x(self, x: float) -> float:
        low, high = self.x_range
        return _LEFT + (x - low) / (high - low) * (_RIGHT - _LEFT)

    def to_y(self, y: float) -> float:
        low, high, at = (self._scale(v) for v in (*self.y_range, y))
        return _BOTTOM - (at - low) / (high - low) * (_BOTTOM - _TOP)

    def places(self, xs: Sequence[float], ys: Sequence[float]) -> Iterator[tuple[float, float]]:
        return ((self.to_x(x), self.to_y(y)) for x, y in zip(xs, ys, strict=True) if y > _LEAST or not self.log)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        places = list(self.places(xs, ys))
        return path([x for x, _ in places], [y for _, y in places])
