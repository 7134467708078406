"""Inputs tried one after another in a process that may die, hang or grow without harm.

The worker limits its own address space and says on standard output what became of each input; the
parent starts another one where it ends, and calls that a fault.
"""

import json
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 2.0  # of processor time, so that a busy machine is no fault
_HANG = 120  # seconds of silence after which a worker is ended
_EACH = 1000  # inputs of one worker: torch.fx keeps the source of every network it made
GOOD, REFUSED = "accepted", "refused"


@dataclass
class Tally:
    """What became of the inputs."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.inputs} inputs: {self.accepted} accepted, {self.refused} refused, "
            f"{len(self.faults)} faults; at most {self.seconds:.2f} s and "
            f"{self.megabytes:.0f} MB for one"
        )


def work(start: int, stop: int, most_bytes: int, name_of: Callable, outcome_of: Callable) -> None:
    """Try the inputs of some numbers; one line of JSON before and after each.

    Parameters
    ----------
    start, stop : int
    most_bytes : int
        That one input may need.
    name_of : callable
        Makes the input of a number: gives its name and itself.
    outcome_of : callable
        Gives :data:`GOOD`, :data:`REFUSED`, or what is wrong.
    """
    # what is only reserved counts here too; beside that, allocators keep some in store
    limit = _status("VmSize") + most_bytes + (512 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for i in range(start, stop):
        print(json.dumps({"start": i}), flush=True)
        name, given = name_of(i)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
        before, begin = _status("VmHWM"), time.process_time()
        try:
            outcome = outcome_of(given)
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        print(
            json.dumps(
                {
                    "end": i,
                    "name": name,
                    "outcome": outcome[:300],
                    "seconds": time.process_time() - begin,
                    "bytes": _status("VmHWM") - before,
                }
            ),
            flush=True,
        )


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def run_all(
    module: str, inputs: int, seed: int, most_bytes: int, most_seconds: float = MOST_SECONDS
) -> Tally:
    """Try so many inputs in workers, ``python -m module --worker START STOP --seed SEED``."""
    tally, place = Tally(), 0
    while place < inputs:
        stop = min(place + _EACH, inputs)
        command = [
            sys.executable,
            "-m",
            module,
            "--worker",
            str(place),
            str(stop),
            "--seed",
            str(seed),
        ]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT) as process,
        ):
            place, failed = _listen(process, tally, place, most_bytes, most_seconds)
            if failed:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                tally.faults[-1] += f": {' '.join(last)}"
    return tally


def _listen(
    process: subprocess.Popen, tally: Tally, place: int, most_bytes: int, most_seconds: float
) -> tuple[int, bool]:
    """Read a worker's lines; gives the number that comes next, and whether the worker failed."""
    why = "the process died"
    while True:
        if not select.select([process.stdout], [], [], _HANG)[0]:
            process.kill()
            why = f"nothing for {_HANG} s"
        line = process.stdout.readline()
        if not line:
            break
        said = json.loads(line)
        if "start" in said:
            place = said["start"]
            continue
        place = said["end"] + 1
        tally.inputs += 1
        tally.accepted += said["outcome"] == GOOD
        tally.refused += said["outcome"] == REFUSED
        tally.seconds = max(tally.seconds, said["seconds"])
        tally.megabytes = max(tally.megabytes, said["bytes"] / 1e6)
        wrong = said["outcome"] not in (GOOD, REFUSED)
        if wrong or said["seconds"] > most_seconds or said["bytes"] > most_bytes:
            tally.faults.append(
                f"input {said['end']} ({said['name']}): {said['outcome']}, "
                f"{said['seconds']:.2f} s, {said['bytes'] / 1e6:.0f} MB"
            )
    if process.wait() == 0:
        return place, False
    tally.inputs += 1
    tally.faults.append(f"input {place}: {why} ({process.returncode})")
    return place + 1, True
