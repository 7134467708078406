"""Memory that a server has, lacks, and gives back."""

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

import torch

from dfm_mlflow.mlflow_plugin.mlmodel import Declared

_ROOM = 3  # times the files of a model that must be free in memory, and
_ROOM_BESIDE = 256 << 20  # bytes beside


def memory_of(device: torch.device) -> dict[str, int]:
    """Bytes in use: of this process, and of a GPU by its allocator."""
    found = {}
    if device.type == "cuda":
        found["allocated"] = torch.cuda.memory_allocated(device)
        found["reserved"] = torch.cuda.memory_reserved(device)
    try:
        with open("/proc/self/statm") as file:
            found["resident"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        pass
    return found


def lack_of_room(declared: Declared, device: torch.device) -> str | None:
    """Say why there is no room for another version beside the one that is served."""
    size = sum(file.stat().st_size for file in declared.files() if file.is_file())
    needed, free = _ROOM * size + _ROOM_BESIDE, free_memory()
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    if free >= needed:
        return None
    return (
        "There is too little memory for another version beside what is served: it may need "
        f"{needed >> 20} MB, and {free >> 20} MB are free."
    )


def free_memory() -> int:
    """Bytes that this process may still take, of the machine and of its container."""
    found = [1 << 62]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            used = int((group / "memory.current").read_text())
            files = (group / "memory.stat").read_text().split("inactive_file ")[1].split()[0]
            found.append(int(most) - used + int(files))
    except (OSError, ValueError, IndexError):
        pass
    return max(0, min(found))


def give_back() -> None:
    """Return memory that a model has left to the device and to the machine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
