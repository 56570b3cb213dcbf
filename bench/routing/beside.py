#!/usr/bin/env python3
"""What rules cost a request beside HAProxy's map files and Envoy's routes: the same rules in each, and every
request answered by the proxy itself.

No proxy can be asked for one decision, so each runs twice, with so many rules and with one, and the difference
of their CPU per request is the cost of the rules. The runs are interleaved. CPU is the time all threads of
the process were on a processor; requests are those the load generator counted.
"""
import json, os, re, shutil, socket, statistics, subprocess, sys, tempfile, time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../peers"))
from peers import find_envoy, free_port, version

TOOLS, REPORT = sys.argv[1], sys.argv[2]
ROUNDS = int(os.environ.get("BESIDE_ROUNDS", "3"))
SECONDS = int(os.environ.get("BESIDE_SECONDS", "1"))
SIZES = [int(size) for size in os.environ.get("BESIDE_SIZES", "10,1000,10000,100000").split(",")]
REQUESTS = 4099
LOAD_CORE, PROXY_CORE = "0", "1"
BEGIN, END = "<!-- routing beside: begin -->", "<!-- routing beside: end -->"
WORK = tempfile.mkdtemp(prefix="beside-")
running = {}

# --- the rules: each kind says how rule n reads and which request meets it; the number is its row in worlds.rs ---

path = lambda n: f"/app/team-{n % 97}/service-{n}"
tenant = lambda n: f"tenant-{n}.apps.example.com"
KINDS = [
    ("hosts, exact", 0, tenant, lambda n: (tenant(n), "/index.html", None)),
    ("hosts, wildcard", 1, tenant, lambda n: ("www." + tenant(n), "/index.html", None)),
    ("paths, exact", 2, path, lambda n: ("example.com", path(n), None)),
    ("paths, prefix", 3, path, lambda n: ("example.com", path(n) + "/a/b.html", None)),
    ("one header's exact value", 8, lambda n: f"tenant-{n}",
     lambda n: ("example.com", "/index.html", f"tenant-{n}")),
]
LOOK_UP = {
    "hosts, exact": "req.hdr(host),lower,map_str",
    "hosts, wildcard": "req.hdr(host),lower,map_end",
    "paths, exact": "path,map_str",
    "paths, prefix": "path,map_beg",
    "one header's exact value": "req.hdr(x-tenant),map_str",
}

# --- the racers -----------------------------------------------------------------------------------------------


def tidegate(kind, size, port):
    return [f"{TOOLS}/bench-router", str(kind[1]), str(size), str(port)]


def haproxy(kind, size, port):
    what, _, rule, _ = kind
    name = f"{WORK}/haproxy-{port}"
    before = "." if what == "hosts, wildcard" else ""
    after = "/" if what == "paths, prefix" else ""
    with open(f"{name}.map", "w") as out:
        out.writelines(f"{before}{rule(n)}{after} r{n}\n" for n in range(size))
    with open(f"{name}.cfg", "w") as out:
        out.write(f"""global
  nbthread 1
  maxconn 2000
defaults
  mode http
  timeout client 600s
  timeout server 600s
  timeout connect 5s
frontend f
  bind 127.0.0.1:{port}
  http-request return status 200 hdr x-rule %[{LOOK_UP[what]}({name}.map,none)]
backend none
""")
    return ["haproxy", "-db", "-f", f"{name}.cfg"]


def envoy(kind, size, port):
    what, _, rule, _ = kind
    answer = {"direct_response": {"status": 200}}
    route = lambda match: {"match": match, **answer}
    hosts = {
        "hosts, exact": lambda: [[rule(n)] for n in range(size)],
        "hosts, wildcard": lambda: [["*." + rule(n)] for n in range(size)],
    }.get(what)
    if hosts:
        virtual_hosts = [{"name": f"v{n}", "domains": domains, "routes": [route({"prefix": "/"})]}
                         for n, domains in enumerate(hosts())]
    else:
        match = {
            "paths, exact": lambda n: {"path": rule(n)},
            "paths, prefix": lambda n: {"prefix": rule(n) + "/"},
            "one header's exact value": lambda n: {"prefix": "/", "headers": [
                {"name": "x-tenant", "string_match": {"exact": rule(n)}}]},
        }[what]
        virtual_hosts = [{"name": "v", "domains": ["*"],
                          "routes": [route(match(n)) for n in range(size)]}]
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "b", "generate_request_id": False,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config":
                          {"@type": f"{types}.http.router.v3.Router"}}],
        "route_config": {"virtual_hosts": virtual_hosts},
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "h", "typed_config": manager}]}],
    }
    name = f"{WORK}/envoy-{port}.json"
    json.dump({"static_resources": {"listeners": [listener]}}, open(name, "w"))
    return [find_envoy(TOOLS), "-c", name, "--concurrency", "1", "-l", "error", "--disable-hot-restart"]


# --- measuring ------------------------------------------------------------------------------------------------


def start(racer, kind, size):
    port = free_port()
    log = open(f"{WORK}/{port}.log", "w")
    began = time.time()
    process = subprocess.Popen(["taskset", "-c", PROXY_CORE, *racer(kind, size, port)],
                               stdout=log, stderr=subprocess.STDOUT)
    running[port] = process
    while time.time() < began + 120:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return port, time.time() - began
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.02)
    raise SystemExit(f"{process.args} does not listen: {open(log.name).read()[-2000:]}")


def stop():
    for port in list(running):
        process = running.pop(port)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_nanoseconds(port):
    tasks = f"/proc/{running[port].pid}/task"
    return sum(int(open(f"{tasks}/{task}/schedstat").read().split()[0]) for task in os.listdir(tasks))


def memory(port):
    status = open(f"/proc/{running[port].pid}/status").read()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024


def script(kind, size):
    """Requests that meet all rules evenly, for wrk."""
    name = f"{WORK}/{kind[1]}-{size}.lua"
    with open(name, "w") as out:
        out.write("local r = {}\n")
        for turn in range(REQUESTS):
            host, target, header = kind[3](turn * 7907 % size)
            head = f"GET {target} HTTP/1.1\\r\\nHost: {host}\\r\\n"
            head += f"x-tenant: {header}\\r\\n" if header else ""
            out.write(f'r[{turn + 1}] = "{head}\\r\\n"\n')
        out.write("local i = 0\nfunction request() i = i % #r + 1; return r[i] end\n")
    return name


def cost(port, lua):
    """CPU per request, in nanoseconds."""
    before = cpu_nanoseconds(port)
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", "-c32", f"-d{SECONDS}s", "-s", lua,
               f"http://127.0.0.1:{port}/"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    requests = int(re.search(r"(\d+) requests in", out)[1])
    return (cpu_nanoseconds(port) - before) / max(requests, 1)


def measure(kind, racers):
    """For each racer and size: what the rules add to a request, and what they take to start and to hold."""
    rows = {}
    for size in SIZES:
        ports = {}
        for name, racer in racers.items():
            one, _ = start(racer, kind, 1)
            many, started = start(racer, kind, size)
            ports[name] = (one, many, started, memory(many) - memory(one))
        lua = {count: script(kind, count) for count in (1, size)}
        differences = {name: [] for name in racers}
        for _ in range(ROUNDS):
            for name, (one, many, _, _) in ports.items():
                pair = cost(many, lua[size]) - cost(one, lua[1])
                differences[name].append(pair)
        rows[size] = {name: (differences[name], ports[name][2], ports[name][3]) for name in racers}
        stop()
        told = ", ".join(f"{n} {statistics.median(r[0]):.0f} ns" for n, r in rows[size].items())
        print(f"{kind[0]}, {size} rules: {told}", flush=True)
    return rows


# --- the report -----------------------------------------------------------------------------------------------


def amount(nanoseconds):
    return f"{nanoseconds / 1000:.1f} µs" if abs(nanoseconds) >= 10_000 else f"{nanoseconds:.0f} ns"


def cell(row):
    differences, started, grown = row
    return (f"{amount(statistics.median(differences))} [{amount(min(differences))}.."
            f"{amount(max(differences))}] | {started * 1000:.0f} ms | {max(grown, 0) / 2**20:.1f} MiB")


def main():
    racers = {"tidegate": tidegate}
    versions = []
    if shutil.which("haproxy"):
        racers["haproxy"] = haproxy
        versions.append("HAProxy " + version(["haproxy", "-v"]))
    if find_envoy(TOOLS):
        racers["envoy"] = envoy
        versions.append("Envoy " + version([find_envoy(TOOLS), "--version"]))
    load = os.getloadavg()[0]
    head = "".join(f" {name} adds | starts in | holds |" for name in racers)
    lines = [f"{', '.join(versions)}. Load average before the run {load:.1f}; median of {ROUNDS} interleaved pairs "
             f"of {SECONDS} s, in brackets the least and the greatest. Where they lie around 0, the rules cost less "
             "than the measurement can tell.", "", f"| rules | number |{head}", "|---|---|" + "---|" * 3 * len(racers)]
    for kind in KINDS:
        for size, row in measure(kind, racers).items():
            lines.append(f"| {kind[0]} | {size} | " + " | ".join(cell(row[name]) for name in racers) + " |")
    text = open(REPORT).read()
    section = f"{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}"
    text = text[:text.index(BEGIN)] + section + text[text.index(END) + len(END):]
    open(REPORT, "w").write(text)


try:
    main()
finally:
    stop()
    shutil.rmtree(WORK, ignore_errors=True)
