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
_KEPT = (2**24, 2**31 - 1, 2**28)  # bytes; the first: more than any activation of SmolLM2 in a pack of 2,048 tokens
_GIVEN_BACK = (2**17, 2**17, 2**17)  # glibc's own values, which it raises by itself unless they are set
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


def keep_freed_pages(keep: bool) -> None:
    """Whether glibc keeps what this process frees, or gives it back to the kernel and has the same pages zeroed anew.

    A training step frees and takes gigabytes, always in the same sizes: page faults took 12 % of a bf16 step of SmolLM2 on one
    machine and nothing that shows on another (docs/log.md). What is kept falls to pieces: half a gigabyte more at the peak of a step of
    SmolLM2 that computes its activations again. So who asks for time has it kept, and who asks for memory has it given back.
    Large blocks always go back: kept too, a step of 8,192 tokens takes 6.5 GB instead of 2.6. `reset_peak` gives back what a
    stage left. Elsewhere than under glibc nothing happens.
    """
    if _GLIBC:
        for parameter, value in zip((_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD), _KEPT if keep else _GIVEN_BACK, strict=True):
            _GLIBC.mallopt(parameter, value)


def _field(name: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
    return None if kib is None else kib * 1024 / 1e9
