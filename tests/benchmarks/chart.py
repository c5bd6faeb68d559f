"""A bar chart as SVG, for the README."""

from xml.sax.saxutils import escape

BAR, GAP, LABELS, WIDTH = 20, 8, 330, 860


def bars(matched: dict[str, float], bound: dict[str, float], highlighted: str) -> str:
    """Return a chart of two groups of bars. Both dicts have nanoseconds by contender."""
    groups = [("match(path, method)", matched), ("bind_to_environ(environ).match()", bound)]
    longest = max(max(group.values()) for _, group in groups)
    y, shapes = 10, []
    for title, times in groups:
        y += 16
        shapes.append(f'<text x="0" y="{y}" font-weight="bold">{escape(title)}</text>')
        y += 10
        for who, took in sorted(times.items(), key=lambda item: item[1]):
            length = took / longest * (WIDTH - LABELS - 90)
            color = "#2563eb" if who == highlighted else "#9ca3af"
            middle = y + BAR - 6
            shapes += [
                f'<text x="{LABELS - 8}" y="{middle}" text-anchor="end">{escape(who)}</text>',
                f'<rect x="{LABELS}" y="{y}" width="{length:.0f}" height="{BAR}" fill="{color}"/>',
                f'<text x="{LABELS + length + 6:.0f}" y="{middle}">{took / 1000:.1f} µs</text>',
            ]
            y += BAR + GAP
        y += 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
        'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )
