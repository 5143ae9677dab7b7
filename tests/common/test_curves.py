"""Curves of a page: every point is there or stands for its neighbours, everything is escaped, and the script draws what
stands in the page without it."""

import html
import json
import math
import random
import re
import shutil
import subprocess

import pytest

from mmed_jax.common import curves as drawing
from mmed_jax.common.curves import Mark, Series, curves
from mmed_jax.common.html_page import TEMPLATES, environment

EVIL = "</script><script>alert('x')</script>\u202e\"'&"


def noisy(count: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [3 / (k + 1) ** 0.5 + draw.gauss(0, 0.1) + 1 for k in range(count)]


def attribute(text: str, name: str) -> list[str]:
    return [html.unescape(v) for v in re.findall(rf' {name}="([^"]*)"', text)]


def numbers(text: str) -> list[float]:
    return [float(v) for v in text.split()]


def test_points_marks_and_what_is_not_a_number():
    ys = [3.5, math.nan, 1.5, math.inf, 1.25]
    figure = curves(
        "Loss",
        [
            Series("training", [1, 2, 3, 4, 5], ys, epochs_per_x=0.5),
            Series("none", [], []),
            Series("held out", [5], [2.0]),
        ],
        unit="nats",
        marks=[Mark(3, "resumed", 0.5), Mark(4, "resumed"), Mark(99, "resumed")],
    )
    assert attribute(figure, "data-name") == ["training", "held out"]
    assert [numbers(v) for v in attribute(figure, "data-x") if " " in v] == [[1, 3, 5]]
    assert numbers(attribute(figure, "data-y")[0]) == [3.5, 1.5, 1.25]
    assert numbers(attribute(figure, "data-bad")[0]) == [2, 4] and "NaN or infinite" in figure
    # Two marks lie in the plot, and their text is named once in the legend.
    assert figure.count("<title>resumed (step") == 2 and len(re.findall(r"</svg>resumed</li>", figure)) == 1
    assert "<script" not in figure and "nats" in figure and ">step</text>" in figure
    assert re.search(r'<svg class="plot" role="img" tabindex="0" viewBox="0 0 440 260">', figure)


def test_no_points_no_plot_and_one_point_is_one():
    assert curves("Loss", []) == curves("Loss", [Series("a", [], [])]) == ""
    assert 'class="dots" d="M237.0 118.0h0"' in curves("Loss", [Series("a", [7], [2.0])])
    assert "crosses" in curves("Loss", [Series("a", [1, 2], [math.nan, math.nan])])  # nothing but crosses


@pytest.mark.parametrize(
    "ys", [[1e300, -1e300], [5e-324, 1.0], [1.0, 1.0 + 3e-16], [0, 5e-324], [-1e99, 1e99], [0, 0], [1e-300, 0]]
)
@pytest.mark.parametrize("log", [False, True])
def test_any_number_is_drawn_or_marked(ys, log):
    figure = curves("t", [Series("a", [1, 2**63], ys)], log=log)
    assert not re.search(r"nan|inf(?!inite)", re.sub(r"<[/a-z]+|NaN", "", figure))


def test_everything_is_escaped():
    figure = curves(EVIL, [Series(EVIL, [1, 2], [1, 2])], unit=EVIL, x_name=EVIL, marks=[Mark(1, EVIL)])
    assert "alert('x')" not in figure and "<script" not in figure
    assert attribute(figure, "data-name") == [EVIL]


def test_static_lines_follow_the_axis():
    figure = curves("t", [Series("a", [0, 10], [1, 100])], log=True)
    first, last = re.findall(r"[ML]([\d.]+) ([\d.]+)", re.search(r'class="raw" d="([^"]+)"', figure)[1])
    assert float(first[0]) == 58 and float(last[0]) == 416 and float(first[1]) > float(last[1])
    assert [t for t in re.findall(r'text-anchor="end">([^<]+)<', figure)] == ["1", "10", "100"]
    # Values that a logarithm has none of are left out of the line, not of the data.
    figure = curves("t", [Series("a", [0, 5, 10], [1, -1, 100])], log=True)
    assert re.search(r'class="raw" d="([^"]+)"', figure)[1].count("L") == 1
    assert curves("t", [Series("a", [1], [-1.0])], log=True).count('data-log="false"') == 1


def test_colours_and_dashes():
    names = [("A: en", "en"), ("A: fr", "fr"), ("B: en", "en"), ("B: fr", "fr")]
    figure = curves("t", [Series(name, [1, 2], [1, 2], colour=word) for name, word in names])
    assert re.findall(r'class="series (c\d dash\d)"', figure) == ["c0 dash0", "c1 dash0", "c0 dash1", "c1 dash1"]


def test_many_points_are_thinned_and_none_that_matters_is_lost():
    xs, ys = list(range(1, 100_001)), noisy(100_000)
    ys[31_234], ys[77_777] = 50.0, -3.0
    kept_x, kept_y = drawing.thinned(xs, ys)
    assert len(kept_x) <= drawing.MOST_POINTS and kept_x == sorted(set(kept_x))
    assert (kept_x[0], kept_x[-1]) == (1, 100_000) and {31_235, 77_778} <= set(kept_x)
    assert all(ys[x - 1] == y for x, y in zip(kept_x, kept_y, strict=True))
    assert drawing.thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_a_schedule_is_drawn_as_it_is_and_noise_is_smoothed():
    xs = list(range(1, 301))
    schedule = curves("t", [Series("lr", xs, noisy(300), smooth=False)])
    assert "faint" not in schedule and 'class="smoothed" d=""' in schedule
    cloud = curves("t", [Series("loss", xs, noisy(300))])
    assert "raw faint" in cloud and cloud.count('class="smoothed" d="M') == 1
    assert drawing.rolling_median([1, 9, 2, 3, 4], 1) == [5, 2, 3, 3, 3.5]


def test_labels():
    shown = {
        0: "0",
        0.25: "0.25",
        1500: "1,500",
        12345.6: "12,346",
        2e-5: "2e-5",
        1.25e7: "1.25e7",
        -0.5: "-0.5",
        3: "3",
    }
    assert {v: drawing.label(v) for v in shown} == shown
    shown = {0.25: "0.25", 9999: "9,999", 10000: "10k", 150000: "150k", -2.5e6: "-2.5M", 2e9: "2e9", 1e-4: "1e-4"}
    assert {v: drawing.axis_label(v) for v in shown} == shown
    assert drawing.ticks(1, 3, whole=True) == [1, 2, 3] and drawing.ticks(0, 1) == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1]
    )


node = pytest.mark.skipif(not shutil.which("node"), reason="there is no node to run the script with")


def in_node(code: str, given: object) -> object:
    """What `code` gives of `given`, with the script's functions as `curves`."""
    whole = f"const curves = require({json.dumps(str(TEMPLATES / 'curves.js'))}); const given = {json.dumps(given)};"
    whole += f"console.log(JSON.stringify({code}));"
    return json.loads(subprocess.run(["node", "-e", whole], capture_output=True, text=True, check=True).stdout)


@node
def test_the_script_draws_by_the_same_rules():
    draw = random.Random(3)
    alike = [(1.0, 1.0 + 3e-16), (0, 5e-324), (2.0**62, 2.0**62 + 2048), (1e-5, 1e-5 + 1e-16), (0, 0), (-4, -4)]
    ranges = [sorted((draw.uniform(0, 10 ** draw.uniform(-6, 6)), 10 ** draw.uniform(-6, 6))) for _ in range(60)]
    values = [draw.uniform(-1, 1) * 10 ** draw.uniform(-9, 9) for _ in range(200)] + [0, 1, 1000, 999.96]
    ys = noisy(40)
    code = """{
      ticks: given.ranges.map(([a, b]) => [[], [true], [false, true]].map((kind) => curves.ticks(a, b, ...kind))),
      extents: given.ranges.map(([a, b]) => [false, true].map((log) => curves.extent([b, a, a], log, 0.05))),
      alike: given.alike.map(([a, b]) => curves.extent([a, b], false, 0.05)).map((e) => [e, curves.ticks(...e)]),
      labels: given.values.map(curves.label),
      axis: given.values.map(curves.axisLabel),
      medians: [0, 1, 5, 50].map((half) => curves.rollingMedian(given.ys, half)),
      halves: [0, 5, 20].map((s) => curves.halfWindow(1200, s)), path: curves.path([1.26, 2], [3, 4.26]),
      nearest: [-5, 1, 3.4, 3.6, 99].map((x) => curves.nearest([1, 2, 3, 4], x)),
    }"""
    got = in_node(code, {"ranges": ranges, "alike": alike, "values": values, "ys": ys})
    kinds = ({}, {"log": True}, {"whole": True})
    for (a, b), by_script in zip(ranges, got["ticks"], strict=True):
        for kind, theirs in zip(kinds, by_script, strict=True):
            assert theirs == pytest.approx(drawing.ticks(a, b, **kind)), (a, b, kind)
    for (a, b), by_script in zip(ranges, got["extents"], strict=True):
        assert by_script == [pytest.approx(drawing.extent([b, a, a], log, 0.05)) for log in (False, True)]
    for pair, (both, by_script) in zip(alike, got["alike"], strict=True):
        assert both == pytest.approx(drawing.extent(pair, margin=0.05)), pair
        assert by_script == pytest.approx(drawing.ticks(*both)) and 1 < len(by_script) < 12, pair
    assert got["labels"] == [drawing.label(v) for v in values]
    assert got["axis"] == [drawing.axis_label(v) for v in values]
    assert got["medians"] == [pytest.approx(drawing.rolling_median(ys, half)) for half in (0, 1, 5, 50)]
    assert got["halves"] == [drawing.half_window(1200, s) for s in (0, 5, 20)]
    assert got["path"] == drawing.path([1.26, 2], [3, 4.26]) and got["nearest"] == [0, 0, 2, 3, 3]


def test_a_page_with_curves_is_small():
    """Four plots of a million steps' thinned points and all that draws them; a plotting library is 2 to 5 MB."""
    plot = curves("t", [Series(f"s{k}", range(5000), noisy(5000, k)) for k in range(3)])
    source = '{% extends "base.html" %}{% set scripts = ["curves.js"] %}{% block body %}{{ plots|join }}{% endblock %}'
    page = environment().from_string(source).render(title="t", plots=[plot] * 4)
    assert len(page) < 700_000 and len((TEMPLATES / "curves.js").read_bytes()) < 16_000
    assert not re.search(r"https?:", page)
