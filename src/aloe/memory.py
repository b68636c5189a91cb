"""Memory of this process, and its peak since a stage began.

Linux keeps the peak of the resident set (VmHWM of /proc/self/status) for the whole life of a process. Stages run one after
another in one process, so the peak is set back before each: writing 5 to /proc/self/clear_refs does that (proc(5), Linux 4.0).
Where there is no such file nothing is reported: a peak that may be an earlier stage's would be a wrong number.
"""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

_GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_OWN_PAGES = 2**24  # bytes: more than any activation of SmolLM2 in a pack of 2,048 tokens
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Begin to count the peak anew; False where this system cannot."""
    if _GLIBC:
        _GLIBC.malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def resident_gb() -> float | None:
    """Resident memory now, in 1e9 bytes; None where the system does not say."""
    return _field("VmRSS")


def peak_gb() -> float | None:
    """The largest resident memory since `reset_peak`, in 1e9 bytes; None where the system does not say."""
    return _field("VmHWM")


def keep_freed_pages() -> None:
    """Let glibc keep what this process frees, rather than give it back to the kernel and have the same pages zeroed anew.

    A training step frees and takes gigabytes, always in the same sizes: page faults took 12 % of a bf16 step of SmolLM2 on one
    machine and nothing that shows on another (docs/log.md).
    Blocks over `_OWN_PAGES` still come from the kernel and go back to it: kept too, they fall to pieces, and a step of 8,192 tokens takes 6.5 GB
    instead of 2.6. `reset_peak` gives back what a stage left. Elsewhere than under glibc nothing happens.
    """
    if _GLIBC:
        for parameter, value in ((_M_MMAP_THRESHOLD, _OWN_PAGES), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            _GLIBC.mallopt(parameter, value)


def _field(name: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
    return None if kib is None else kib * 1024 / 1e9
