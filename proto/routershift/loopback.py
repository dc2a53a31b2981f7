"""Whether an address stays on this machine. Imports no gRPC, for commands that need none."""

import ipaddress


def is_loopback(target: str) -> bool:
    """Whether a gRPC target or a host stays on this machine."""
    if target.startswith("unix:"):
        return True
    host = target.removeprefix("dns:").rsplit("/", 1)[-1].removeprefix("ipv4:").removeprefix("ipv6:")
    if host.count(":") == 1 or "]" in host:
        host = host.rpartition(":")[0] if not host.endswith("]") else host
    host = host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
