"""Bytes: how many are free, and how people write them.

Knows nothing about models.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# As on the label of a disk: 1 MB is a million bytes.
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
GUESS = 2 * 10**9  # where a system does not tell


def size(n_bytes: float) -> str:
    """Return a number of bytes as people write it.

    Example:
        >>> size(512), size(4096), size(1.25e9)
        ('512 B', '4.1 kB', '1.2 GB')
    """
    name = next((name for name, unit in reversed(UNITS.items()) if n_bytes >= unit), "B")
    return f"{n_bytes:.0f} B" if name == "B" else f"{n_bytes / UNITS[name]:.1f} {name}"


def parse_size(text: str) -> int:
    """Return the number of bytes that a short text names.

    Args:
        text: a number and B, kB, MB, GB or TB in any case; bytes without a unit.

    Raises:
        ValueError: the text is no size, or less than a byte.

    Example:
        >>> parse_size("200MB"), parse_size("1.5 gb"), parse_size("4096")
        (200000000, 1500000000, 4096)
    """
    found = re.fullmatch(r"([\d.]+)\s*([kmgt]?b)?", text.strip().lower())
    units = {name.lower(): unit for name, unit in UNITS.items()}
    try:
        n_bytes = int(float(found[1]) * units[found[2] or "b"])
    except (TypeError, ValueError):
        n_bytes = 0
    if n_bytes < 1:
        raise ValueError(f"no size {text!r}; write a number and a unit, such as 200MB or 1.5GB")
    return n_bytes


def free_memory(device: str = "cpu") -> int:
    """Return how many bytes new tensors could take on a device, now.

    On Linux a container's limit counts too. Where the system does not tell, half of the machine's
    memory is taken for free, or two gigabytes.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; others share the memory of the CPU.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    known = [_available(), _left_in_container()]
    return min((n_bytes for n_bytes in known if n_bytes is not None), default=GUESS)


def keep_freed_memory() -> None:
    """Let the process keep what is freed at hand, some 64 MB, where the C library is glibc.

    Otherwise large tensors go back to the system one by one, and each page of the next one is
    fetched and cleared anew. What glibc sees freed, it takes for a size that will be asked for
    again, up to 32 MB.

    Source: the manual page mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    import torch

    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _available() -> int | None:
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        return 1024 * int(found[1])
    except (OSError, TypeError):  # no Linux
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):  # no Unix
        return None


def _left_in_container(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what control group version 2 leaves to this process; None without a limit."""
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no such file, or the limit is "max"
        return None
