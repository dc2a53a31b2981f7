"""Bytes in words."""


def in_words(count: float) -> str:
    """As 512 B, 1.50 KiB or 12.00 GiB: in the largest unit of which there is a whole one."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.2f} {unit}"
    return f"{count / 1024:.2f} TiB"
