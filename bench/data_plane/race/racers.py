"""The racers: every one does the same header work (X-Forwarded-For, Via both ways), keeps connections to one
backend, has the same certificate, and writes an access log."""
import json
import sys

from peers import find_envoy
from processes import WORK

TOOLS = sys.argv[1]


def nginx(http, https, backend, routes, workers):
    more = "".join(
        f"  server {{ listen 127.0.0.1:{http}; server_name h{n}.test;"
        + "".join(f" location /part-{p}/ {{ proxy_pass http://b; }}" for p in range(10)) + " }\n"
        for n in range(routes // 10))
    open(f"{WORK}/nginx.conf", "w").write(f"""
user root; worker_processes {workers}; daemon off; pid {WORK}/nginx.pid; error_log {WORK}/nginx-error.log warn;
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
  add_header Via "1.1 lb"; proxy_buffers 8 32k; proxy_buffer_size 32k; proxy_busy_buffers_size 64k; proxy_max_temp_file_size 0;
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


def haproxy(http, https, backend, _routes, workers):
    # A log in a file needs a reader of HAProxy's syslog datagrams; a ring written by HAProxy itself
    # (`log stdout`) is the nearest it has of its own.
    open(f"{WORK}/haproxy.cfg", "w").write(f"""
global
  nbthread {workers}
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


def envoy(http, https, backend, _routes, workers):
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
    return [find_envoy(TOOLS), "-c", f"{WORK}/envoy.json", "--concurrency", str(workers), "-l", "error",
            "--disable-hot-restart"]


def tidegate(http, https, backend, routes, workers):
    return [f"{TOOLS}/bench-plane", str(http), str(https), str(backend), str(workers), str(routes),
            f"{WORK}/tidegate-access.log", f"{WORK}/cert.pem", f"{WORK}/key.pem"]


def floor(http, _https, backend, _routes, _workers):
    return [f"{TOOLS}/bench-floor", str(http), str(backend)]
