"""The page's plots, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from optc.ir.targets import Target
from optc.page.markup import table, text
from optc.page.work import Work
from optc.passes.base import Attempt
from optc.units import size_text

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 330, 56, 40
_LABELLED = 8


def roofline(work: Sequence[Work], target: Target, bindings: Mapping[str, int]) -> str:
    """Operations per byte against what the target attains at that, where its rates are known. All of it estimates."""
    shown = [item for item in work if item.operations > 0]
    if not shown:
        return ""
    heights = [_attainable(item, target) for item in shown]
    known = all(height is not None for height in heights)
    points = [
        (item.intensity, item.operations if height is None else height)
        for item, height in zip(shown, heights, strict=True)
    ]
    x_axis = _log_axis([x for x, _ in points], _LEFT, _WIDTH - 12)
    y_axis = _log_axis([y for _, y in points], _HEIGHT - _BOTTOM, 14)
    largest = max(item.bytes for item in shown)
    dots = []
    for at, (item, (x, y)) in enumerate(zip(shown, points, strict=True)):
        title = f"{item.op} x {item.count}: {item.operations:.3g} operations, {size_text(int(item.bytes))}"
        radius = 3 + 9 * math.sqrt(item.bytes / largest)
        dots.append(_dot(x_axis(x), y_axis(y), radius, title, item.op if at < _LABELLED else ""))
    frame = _frame("operations per byte", "attainable operations per second" if known else "operations")
    sizes = ", ".join(f"{name}={size}" for name, size in bindings.items()) or "the model's own sizes"
    roof = f"under the roof of {target.name}" if known else "the target's peak rates are not known"
    caption = f"Estimated from shapes at {sizes}, not measured; {roof}. The size of a dot is the bytes moved."
    rows = [
        (item.op, item.count, f"{item.operations:.3g}", size_text(int(item.bytes)), f"{item.intensity:.2f}")
        for item in work
    ]
    heads = ("operator", "nodes", "operations", "bytes", "operations per byte")
    return (
        f"<figure>{frame}{''.join(dots)}</svg><figcaption>{text(caption)}</figcaption></figure>"
        f"<details><summary>The same as a table (estimates)</summary>{table(heads, rows, heads[1:])}</details>"
    )


def _attainable(item: Work, target: Target) -> float | None:
    """Operations per second at an operator's intensity; None if the target's rates are not known."""
    if not target.peak or target.bandwidth is None:
        return None
    return min(max(target.peak.values()), item.intensity * target.bandwidth)


def pareto(attempts: Sequence[Attempt], budget: float | None) -> str:
    """Error against time against size of every model that a search measured."""
    points = [(a.error, a.seconds, a) for a in attempts if a.seconds and 0 < a.error < math.inf]
    if len(points) < 2:
        return ""
    x_axis = _log_axis([x for x, _, _ in points], _LEFT, _WIDTH - 12)
    y_axis = _log_axis([y for _, y, _ in points], _HEIGHT - _BOTTOM, 14)
    largest = max(attempt.bytes for _, _, attempt in points)
    dots = "".join(
        _dot(x_axis(x), y_axis(y), 3 + 6 * math.sqrt(a.bytes / largest), _told(a), kind="" if a.kept else "refused")
        for x, y, a in points
    )
    allowed = f" The budget is {budget}." if budget else ""
    return (
        f"<figure>{_frame('relative L2 error', 'seconds of all layers')}{dots}</svg><figcaption>Every model that was "
        f"measured on the way: what was kept in colour, the others in grey; the larger the dot, the larger the weights."
        f"{text(allowed)}</figcaption></figure>"
    )


def _told(attempt: Attempt) -> str:
    layers = ", ".join(f"{count} {label}" for label, count in attempt.options.items())
    speed = f", {attempt.speedup:.2f}x as a whole" if attempt.speedup else ""
    return f"{layers}: error {attempt.error:.2g}, {size_text(attempt.bytes)}{speed}"


def _dot(x: float, y: float, radius: float, title: str, label: str = "", kind: str = "") -> str:
    place = f"cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}'"
    circle = f"<circle class='dot {kind}' {place}><title>{text(title)}</title></circle>"
    if not label:
        return circle
    left = x > _WIDTH * 0.8
    at, anchor = (x - radius - 3, "end") if left else (x + radius + 3, "start")
    return f"{circle}<text x='{at:.1f}' y='{y + 4:.1f}' text-anchor='{anchor}'>{text(label)}</text>"


def _log_axis(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Maps positive numbers to places between ``start`` and ``end``, by their logarithm."""
    logs = [math.log10(value) for value in values]
    low, high = min(logs), max(logs)
    span = (high - low) or 1.0
    margin = 0.08 * (end - start)
    return lambda value: start + margin + (math.log10(value) - low) / span * (end - start - 2 * margin)


def _frame(x_label: str, y_label: str) -> str:
    """The start of a plot: its axes with their names."""
    bottom = _HEIGHT - _BOTTOM
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{x_label} against {y_label}'>"
        f"<line class='axis' x1='{_LEFT}' y1='{bottom}' x2='{_WIDTH - 8}' y2='{bottom}'/>"
        f"<line class='axis' x1='{_LEFT}' y1='10' x2='{_LEFT}' y2='{bottom}'/>"
        f"<text x='{(_WIDTH + _LEFT) / 2}' y='{_HEIGHT - 12}' text-anchor='middle'>{x_label}, logarithmic</text>"
        f"<text transform='translate(16 {bottom / 2}) rotate(-90)' text-anchor='middle'>{y_label}, logarithmic</text>"
    )
