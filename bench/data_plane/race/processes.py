"""Processes of the race: started on a core, measured from outside, ended by their number."""
import os
import signal
import socket
import subprocess
import tempfile
import time

WORK = tempfile.mkdtemp(prefix="race-")
running = {}


def spawn(name, command, cores):
    log = open(f"{WORK}/{name}.log", "w")
    running[name] = subprocess.Popen(
        ["taskset", "-c", cores, *command], stdout=log, stderr=subprocess.STDOUT)


def wait_for(port):
    end = time.time() + 20
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


def cpu_micros(name):
    """Time on a processor of all threads of the process and its children. `schedstat` counts nanoseconds,
    where `stat` counts ticks of 10 ms; all racers keep their threads, so none is missed."""
    total = 0
    for pid in tree(running[name].pid):
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                total += int(open(f"/proc/{pid}/task/{task}/schedstat").read().split()[0])
        except OSError:
            continue
    return total / 1e3


def memory(name):
    total = 0
    for pid in tree(running[name].pid):
        for line in open(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def stop(names):
    for name in names:
        process = running.pop(name)
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
