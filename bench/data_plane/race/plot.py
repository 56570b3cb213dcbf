"""The plot of the race: cost of a request and its tail, each row relative to the best peer."""

COLOURS = {"tidegate": "#1a73e8", "nginx": "#34a853", "haproxy": "#f9ab00", "envoy": "#a142f4",
           "floor": "#9aa0a6"}
LEFT, WIDTH, BAR, GAP, PANEL = 250, 900, 11, 12, 520
MOST = 4.0


def panel(out, y, title, rows, names, peers, key, unit):
    out.append(f'<text x="8" y="{y + 14}" font-size="14" font-weight="bold">{title}</text>')
    y += 30
    top = y
    for load, row in rows.items():
        lead = min((row[peer][key] for peer in peers if peer in row), default=None)
        if not lead:
            continue
        out.append(f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{load}</text>')
        for name in names:
            if name not in row:
                continue
            ratio = row[name][key] / lead
            length = min(ratio, MOST) / MOST * PANEL
            value = row[name][key] if unit == "µs" else row[name][key] / 1000
            beyond = " →" if ratio > MOST else ""
            weight = ' font-weight="bold"' if name == "tidegate" else ""
            out.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" '
                f'fill="{COLOURS[name]}"/><text x="{LEFT + length + 5:.1f}" y="{y + 8.5}" '
                f'font-size="9"{weight}>{name} {value:,.1f} {unit}{beyond}</text>')
            y += BAR
        y += GAP
    for ratio, dash in ((1.0, ""), (0.85, ' stroke-dasharray="3 3"')):
        if ratio != 1.0 and key != "cpu":
            continue
        x = LEFT + ratio / MOST * PANEL
        out.append(f'<line x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{y - GAP + 4}" '
                   f'stroke="#202124"{dash}/>')
    return y + 12


def draw(path, saturation, fixed, names, peers):
    out = []
    y = panel(out, 8, "CPU per request at saturation; line: best peer, dashed: aim of 0.85", saturation,
              names, peers, "cpu", "µs")
    y = panel(out, y, "CPU per request at a fixed rate", fixed, names, peers, "cpu", "µs")
    y = panel(out, y, "p99 latency at saturation", saturation, names, peers, "p99", "ms")
    y = panel(out, y, "p99 latency at a fixed rate, from the moment a request was due", fixed, names,
              peers, "p99", "ms")
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
            'font-family="sans-serif" font-size="11" fill="#202124">'
            f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>')
    open(path, "w").write("\n".join([head, *out, "</svg>"]) + "\n")
