"""Some clients of a server, in threads of one process: prints the seconds of each request as JSON.

    python benchmarks/clients.py PORT FOLDER SECONDS NUMBER...

FOLDER holds bodies of ``/invocations``, each of which names one picture; every client goes through
them from its own number on.
"""

import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def client(port: int, bodies: list[bytes], number: int, seconds: float) -> list[float]:
    """Ask until the time is up; refuses an answer that is no score."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begin, found = time.perf_counter(), []
    while time.perf_counter() < begin + seconds:
        body = bodies[(number + len(found)) % len(bodies)]
        start = time.perf_counter()
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        found.append(time.perf_counter() - start)
        assert answer["predictions"][0]["p_value"] > 0, answer
    return found


def main(port: str, folder: str, seconds: str, *numbers: str) -> None:
    bodies = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    with ThreadPoolExecutor(len(numbers)) as pool:
        found = pool.map(lambda n: client(int(port), bodies, int(n), float(seconds)), numbers)
        json.dump([s for one in found for s in one], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
