#!/usr/bin/env python3
"""The race: Tidegate's data plane beside nginx, HAProxy and Envoy, interleaved, on pinned cores.

Usage: main.py TOOLS REPORT. CPU per request is the time that all threads of a proxy spent on a processor,
divided by the requests the load generator counted. RACE_ROUNDS and RACE_SECONDS say how long each load
runs; RACE_ONLY names the loads (words, separated by commas) when not all are wanted.
"""
import os
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../peers"))
import loads
import plot
import processes
import racers
import report
from peers import find_envoy, free_port, version
from processes import WORK, spawn, stop, wait_for

REPORT = sys.argv[2]
ONLY = [word for word in os.environ.get("RACE_ONLY", "").split(",") if word]
IDLE_AIMS = (2048, 12288)


def machine():
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    return (f"{os.cpu_count()} cores of {model[1] if model else 'an unknown processor'}, Linux "
            f"{os.uname().release}, load average before the race {os.getloadavg()[0]:.1f}")


def versions(peers):
    asked = {"nginx": ["nginx", "-v"], "haproxy": ["haproxy", "-v"]}
    return ", ".join(
        f"{name} {version(asked.get(name) or [find_envoy(racers.TOOLS), '--version'])}" for name in peers)


def certificate():
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-keyout", f"{WORK}/key.pem", "-out", f"{WORK}/cert.pem", "-days", "30",
                    "-subj", "/CN=app.test"], check=True, capture_output=True)
    with open(f"{WORK}/both.pem", "w") as out:
        out.write(open(f"{WORK}/cert.pem").read() + open(f"{WORK}/key.pem").read())


def entrants():
    found = {"tidegate": racers.tidegate}
    for name, command in (("nginx", racers.nginx), ("haproxy", racers.haproxy)):
        if shutil.which(name):
            found[name] = command
    if find_envoy(racers.TOOLS):
        found["envoy"] = racers.envoy
    return found


def start(commands, routes, backend, workers=1, cores=loads.PROXY_CORE):
    ports = {}
    for name, command in commands.items():
        http, https = free_port(), free_port()
        spawn(name, command(http, https, backend, routes, workers), cores)
        wait_for(http)
        if name != "floor":
            wait_for(https)
        ports[name] = (http, https)
    return ports


def run_all(kind, rows, ports, cores=loads.LOAD_CORE):
    results = {}
    for load, run in rows.items():
        if ONLY and not any(word in load for word in ONLY):
            continue
        results[load] = loads.race(ports, load, run, cores)
        line = ", ".join(f"{n} {r['cpu']:.1f} (p99 {r['p99']:.0f})" for n, r in results[load].items())
        print(f"{kind}: {load}: {line}", flush=True)
    return results


def idle(commands, backend):
    found = {name: [] for name in commands}
    for alpn in (None, "http/1.1", "h2"):
        # A process that has served already has memory to spare, so each kind gets fresh ones.
        for name, (http, https) in start(commands, 10, backend).items():
            found[name].append(loads.idle_memory(name, https if alpn else http, alpn))
        stop(list(commands))
    for name, each in found.items():
        print(f"idle {name}: " + ", ".join(f"{bytes_each:.0f}" for bytes_each in each), flush=True)
    return found


def routes(commands, backend):
    found = {}
    for count in (10, 5000):
        ports = start({n: commands[n] for n in ("tidegate", "nginx") if n in commands}, count, backend)
        found[count] = loads.race(ports, "routes", loads.SATURATION["small GET, 64 connections"])
        stop(list(ports))
        print(f"{count} routes: " + ", ".join(f"{n} {r['cpu']:.1f}" for n, r in found[count].items()),
              flush=True)
    return found


def section(where, peers, names, measured):
    saturation, fixed, both, idle_bytes, by_routes = measured
    lines = [
        "## The data plane", "",
        f"{where}. {versions(peers)}. Each figure is the median of {loads.ROUNDS} interleaved rounds of "
        f"{loads.SECONDS} s after a warm-up; in brackets the least and the greatest. The proxy has core "
        f"{loads.PROXY_CORE}; load and backend share core {loads.LOAD_CORE}. `floor` copies bytes and does "
        "nothing else. Everything is on in Tidegate: a decision on a URL map with a URL mask, counters, "
        "timeouts, an access log of every request in Google's format.", "",
        "![CPU and latency of every load](benchmarks-data-plane.svg)", ""]
    lines += ["CPU per request at saturation, µs:", "",
              *report.cpu_table(saturation, names, peers, "load"), "", *report.floor_line(saturation), "",
              "Requests per second and latency at saturation:", "",
              *report.latency_table(saturation, names, peers, "load"), "",
              "CPU per request at a fixed rate, µs:", "",
              *report.cpu_table(fixed, names, peers, "load"), "",
              "Latency at a fixed rate, from the moment a request was due (HTTP/2: from when it was sent):",
              "", *report.latency_table(fixed, names, peers, "load"), "",
              "On both cores, with two workers each, load and backend beside them: CPU per request, µs:", "",
              *report.cpu_table(both, [n for n in names if n != "floor"], peers, "load"), "",
              *report.latency_table(both, [n for n in names if n != "floor"], peers, "load"), "",
              "Idle memory, bytes per connection "
              f"({loads.IDLE_CONNECTIONS[None]} plain ones and {loads.IDLE_CONNECTIONS['h2']} of each other "
              "kind to a fresh process, one GET each):", "", *report.idle_table(idle_bytes, IDLE_AIMS), "",
              "Routes in the map, CPU per small GET, µs:", "", *report.routes_table(by_routes)]
    return "\n".join(lines)


def main():
    begun, where = time.time(), machine()
    certificate()
    commands = entrants()
    peers = [name for name in commands if name != "tidegate"]
    with_floor = {**commands, "floor": racers.floor}
    backend = free_port()
    spawn("backend", [f"{racers.TOOLS}/bench-backend", str(backend)], loads.LOAD_CORE)
    wait_for(backend)
    ports = start(with_floor, 10, backend)
    saturation = run_all("saturation", loads.SATURATION, ports)
    fixed = run_all("fixed rate", loads.FIXED_RATE, ports)
    stop(list(ports))
    idle_bytes = idle(commands, backend)
    by_routes = routes(commands, backend)
    stop(["backend"])
    spawn("backend", [f"{racers.TOOLS}/bench-backend", str(backend)], loads.BOTH_CORES)
    wait_for(backend)
    ports = start(commands, 10, backend, workers=2, cores=loads.BOTH_CORES)
    both = run_all("both cores", loads.BOTH, ports, loads.BOTH_CORES)
    stop([*ports, "backend"])
    picture = os.path.join(os.path.dirname(REPORT), "benchmarks-data-plane.svg")
    plot.draw(picture, saturation, fixed, list(with_floor), peers)
    measured = (saturation, fixed, both, idle_bytes, by_routes)
    report.write(REPORT, section(where, peers, list(with_floor), measured))
    print(f"the race took {time.time() - begun:.0f} s", flush=True)


try:
    main()
finally:
    if processes.running:
        stop(list(processes.running))
    shutil.rmtree(WORK, ignore_errors=True)
