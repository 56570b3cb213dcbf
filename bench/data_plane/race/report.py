"""Tables of the race for docs/benchmarks.md."""
import os

CPU_AIM, FLOOR_AIM = 0.85, 1.25


def cost(row, name):
    if name not in row:
        return ""
    r = row[name]
    return f"{r['cpu']:.1f} [{r['cpu_min']:.1f}..{r['cpu_max']:.1f}]"


def best(row, peers, key):
    return min((row[peer][key] for peer in peers if peer in row), default=None)


def verdict(ratio, aim):
    return f"{ratio:.2f} {'met' if ratio <= aim else 'missed'}"


def cpu_table(results, names, peers, what):
    lines = [f"| {what} | " + " | ".join(names) + f" | of the best peer (aim {CPU_AIM}) |",
             "|---|" + "---|" * (len(names) + 1)]
    for load, row in results.items():
        lead = best(row, peers, "cpu")
        told = verdict(row["tidegate"]["cpu"] / lead, CPU_AIM) if lead else ""
        lines.append(f"| {load} | " + " | ".join(cost(row, n) for n in names) + f" | {told} |")
    return lines


def milliseconds(value):
    return f"{value / 1000:.2f}" if value < 10_000 else f"{value / 1000:.0f}"


def latency_table(results, names, peers, what):
    lines = [f"| {what} | " + " | ".join(f"{n}: req/s, p50/p99/p99.9 ms" for n in names)
             + " | p99 of the best peer's (aim 1) |", "|---|" + "---|" * (len(names) + 1)]
    for load, row in results.items():
        def cell(n):
            if n not in row:
                return ""
            r = row[n]
            failed = f" ({r['failed']:.0f} failed)" if r["failed"] else ""
            tail = "/".join(milliseconds(r[key]) for key in ("p50", "p99", "p999"))
            return f"{r['rate']:.0f}, {tail}{failed}"
        lead = best(row, peers, "p99")
        told = verdict(row["tidegate"]["p99"] / lead, 1) if lead else ""
        lines.append(f"| {load} | " + " | ".join(cell(n) for n in names) + f" | {told} |")
    return lines


def floor_line(results):
    row = results.get("small GET, 64 connections", {})
    if "floor" not in row:
        return []
    ratio = row["tidegate"]["cpu"] / row["floor"]["cpu"]
    return [f"Against the byte-copy floor a small GET at 64 connections costs {ratio:.2f} times as much "
            f"(aim {FLOOR_AIM}): {'met' if ratio <= FLOOR_AIM else 'missed'}."]


def idle_table(idle, aims):
    lines = ["| | plain | TLS, HTTP/1.1 | TLS, HTTP/2 |", "|---|---|---|---|"]
    for name, each in idle.items():
        lines.append(f"| {name} | " + " | ".join(f"{bytes_each:,.0f}" for bytes_each in each) + " |")
    told = ["met" if mine <= aim else "missed" for mine, aim in zip(idle["tidegate"], aims)]
    lines.append("| aim | " + " | ".join(f"{aim:,} {word}" for aim, word in zip(aims, told)) + " | none |")
    return lines


def routes_table(routes):
    names = list(next(iter(routes.values())))
    lines = ["| routes | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for count, row in routes.items():
        lines.append(f"| {count} | " + " | ".join(cost(row, name) for name in names) + " |")
    return lines


def write(path, section):
    """Replaces what the race wrote before, and leaves the words around it."""
    begin, end = "<!-- data plane: begin -->", "<!-- data plane: end -->"
    text = open(path).read() if os.path.exists(path) else "# Benchmarks\n"
    block = f"{begin}\n{section}\n{end}"
    if begin in text:
        text = text[:text.index(begin)] + block + text[text.index(end) + len(end):]
    else:
        text = text.rstrip() + "\n\n" + block + "\n"
    open(path, "w").write(text)
