"""The loads: what is asked of every racer, at saturation and at a fixed rate, and what counts as its answer."""
import json
import os
import re
import socket
import ssl
import statistics
import subprocess
import time

from processes import WORK, cpu_micros, memory
from racers import TOOLS

ROUNDS = int(os.environ.get("RACE_ROUNDS", "3"))
SECONDS = int(os.environ.get("RACE_SECONDS", "2"))
WARM_UP_SECONDS = 1
# Memory comes in pieces of 2 MiB where the kernel has large pages, so plain connections have to be many.
IDLE_CONNECTIONS = {None: 4000, "http/1.1": 1000, "h2": 1000}
LOAD_CORE, PROXY_CORE, BOTH_CORES = "0", "1", "0,1"


def micros(text):
    number, unit = re.match(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def percentile(sorted_values, share):
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


def wrk(url, connections, seconds, cores, post_bytes=0, close=False):
    """A closed loop: every connection asks again as soon as it was answered."""
    script = f"{WORK}/wrk-{post_bytes}.lua"
    with open(script, "w") as out:
        if post_bytes:
            out.write(f'wrk.method = "POST"\nwrk.body = string.rep("x", {post_bytes})\n')
        out.write("done = function(summary, latency, requests)\n"
                  'io.write(string.format("tail %d %d %d\\n", latency:percentile(50),'
                  " latency:percentile(99), latency:percentile(99.9)))\nend\n")
    command = ["taskset", "-c", cores, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script,
               "-H", "Host: app.test", *(["-H", "Connection: close"] if close else []), url]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    # A connection that its server ends after the answer is what `close` asks for, not an error.
    failed = sum(int(count) for count in broken.groups()) if broken and not close else 0
    tail = [int(value) for value in re.search(r"tail (\d+) (\d+) (\d+)", out).groups()]
    return {"requests": int(re.search(r"(\d+) requests in", out)[1]),
            "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]),
            "p50": tail[0], "p99": tail[1], "p999": tail[2],
            "failed": failed + (int(bad[1]) if bad else 0)}


def h2load(url, clients, streams, seconds, cores, *more):
    log = f"{WORK}/h2load.log"
    if os.path.exists(log):
        os.unlink(log)
    command = ["taskset", "-c", cores, "h2load", "-t1", f"-c{clients}", f"-m{streams}",
               f"-D{seconds}", f"--log-file={log}", "-H", ":authority: app.test", *more, url]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    times = sorted(int(line.split("\t")[2]) for line in open(log))
    return {"requests": int(re.search(r"(\d+) succeeded", out)[1]),
            "rate": float(re.search(r"finished in [\d.]+s, ([\d.]+) req/s", out)[1]),
            "p50": percentile(times, 0.5), "p99": percentile(times, 0.99),
            "p999": percentile(times, 0.999), "failed": int(re.search(r"(\d+) failed", out)[1])}


def at_rate(port, path, rate, seconds, connections, transport="plain", life="keep", body=0):
    """An open loop: requests are due when they are due, and latency counts from then."""
    command = ["taskset", "-c", LOAD_CORE, f"{TOOLS}/bench-load", str(port), path, str(rate),
               str(seconds), str(connections), transport, life, str(body)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(out)


# Every load is called with the ports for HTTP and HTTPS, the seconds it may take, and the cores of the
# load generator.
SATURATION = {
    "small GET, 64 connections": lambda h, s, t, c: wrk(f"http://127.0.0.1:{h}/small", 64, t, c),
    "small GET, 256 connections": lambda h, s, t, c: wrk(f"http://127.0.0.1:{h}/small", 256, t, c),
    "small GET over TLS": lambda h, s, t, c: wrk(f"https://127.0.0.1:{s}/small", 64, t, c),
    "small GET over HTTP/2 and TLS":
        lambda h, s, t, c: h2load(f"https://127.0.0.1:{s}/small", 16, 16, t, c),
    "POST 4 KiB": lambda h, s, t, c: wrk(f"http://127.0.0.1:{h}/echo", 64, t, c, post_bytes=4096),
    "64 KiB body": lambda h, s, t, c: wrk(f"http://127.0.0.1:{h}/s64k", 64, t, c),
    "10 MiB body": lambda h, s, t, c: wrk(f"http://127.0.0.1:{h}/s10m", 8, t, c),
    "new connections": lambda h, s, t, c: wrk(f"http://127.0.0.1:{h}/small", 64, t, c, close=True),
    "new TLS connections":
        lambda h, s, t, c: wrk(f"https://127.0.0.1:{s}/small", 64, t, c, close=True),
}

# The rates are about half of what the slowest racer can do, so that all have the same to do.
FIXED_RATE = {
    "small GET, 64 connections, 6000/s": lambda h, s, t, c: at_rate(h, "/small", 6000, t, 64),
    "small GET, 256 connections, 6000/s": lambda h, s, t, c: at_rate(h, "/small", 6000, t, 256),
    "small GET over TLS, 5000/s": lambda h, s, t, c: at_rate(s, "/small", 5000, t, 64, "tls"),
    "small GET over HTTP/2 and TLS, 4800/s":
        lambda h, s, t, c: h2load(f"https://127.0.0.1:{s}/small", 16, 16, t, c, "--rps=300"),
    "POST 4 KiB, 4000/s": lambda h, s, t, c: at_rate(h, "/echo", 4000, t, 64, body=4096),
    "64 KiB body, 2500/s": lambda h, s, t, c: at_rate(h, "/s64k", 2500, t, 64),
    "10 MiB body, 30/s": lambda h, s, t, c: at_rate(h, "/s10m", 30, t, 8),
    "new connections, 2500/s": lambda h, s, t, c: at_rate(h, "/small", 2500, t, 64, life="new"),
    "new TLS connections, 500/s":
        lambda h, s, t, c: at_rate(s, "/small", 500, t, 64, "tls", "new"),
}

BOTH = {
    "small GET, 64 connections": SATURATION["small GET, 64 connections"],
    "small GET over TLS": SATURATION["small GET over TLS"],
    "small GET over HTTP/2 and TLS": SATURATION["small GET over HTTP/2 and TLS"],
}


def takes_part(name, load):
    """The floor copies bytes between two plain connections that stay."""
    return name != "floor" or not ("TLS" in load or "new" in load)


def race(racers, load, run, cores=LOAD_CORE):
    """Every racer in turn, round after round, so that whatever disturbs the machine disturbs all."""
    rounds = {name: [] for name in racers}
    for number in range(ROUNDS + 1):
        for name, (http, https) in racers.items():
            if not takes_part(name, load):
                continue
            before = cpu_micros(name)
            result = run(http, https, SECONDS if number else WARM_UP_SECONDS, cores)
            result["cpu"] = (cpu_micros(name) - before) / max(result["requests"], 1)
            if number:
                rounds[name].append(result)
    return {name: summary(results) for name, results in rounds.items() if results}


def summary(results):
    median = {key: statistics.median(result[key] for result in results) for key in results[0]}
    costs = [result["cpu"] for result in results]
    return {**median, "failed": sum(result["failed"] for result in results),
            "cpu_min": min(costs), "cpu_max": max(costs)}


HTTP2_START = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
               + b"\0\0\x14\1\5\0\0\0\1" + b"\x82\x87\x44\x06/small\x41\x08app.test")


def tls_context(alpn):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context


def ask_and_stay(name, port, alpn, context):
    stream = socket.create_connection(("127.0.0.1", port), 10)
    if alpn:
        stream = context.wrap_socket(stream, server_hostname="app.test")
    stream.sendall(HTTP2_START if alpn == "h2" else b"GET /small HTTP/1.1\r\nHost: app.test\r\n\r\n")
    data = b""
    while b"Hello, world!" not in data:
        piece = stream.recv(65536)
        if not piece:
            raise SystemExit(f"{name} closed an idle connection")
        data += piece
    return stream


def idle_memory(name, port, alpn):
    """What a fresh process grows by for each connection that was used once and stays open."""
    context = tls_context(alpn) if alpn else None
    first = [ask_and_stay(name, port, alpn, context) for _ in range(20)]
    time.sleep(0.3)
    before = memory(name)
    rest = [ask_and_stay(name, port, alpn, context) for _ in range(IDLE_CONNECTIONS[alpn])]
    time.sleep(0.5)
    grown = memory(name) - before
    for connection in first + rest:
        connection.close()
    return max(grown, 0) / IDLE_CONNECTIONS[alpn]
