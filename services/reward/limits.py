"""What a worker process may use, and what to say where a verifier found it used up."""

import resource
import signal

# What those say that do not raise MemoryError: threads need room for stacks, and torch has its own allocator.
_OUT_OF_MEMORY = ("can't start new thread", "can't allocate memory", "Cannot allocate memory")


def limit_memory(mb: int) -> None:
    """Limits what this process allocates, not what it maps: libraries and weights map far more than they use."""
    allowed = mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def memory_hint(error: BaseException) -> str:
    """For the end of a message: the setting that bounds memory, where that is what an exception is about; else ""."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    says = isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    if soft == resource.RLIM_INFINITY or not (says or isinstance(error, MemoryError)):
        return ""
    return f"; its process may allocate reward.memory_mb = {soft >> 20}: allocate less, or raise it"


def ended(code: int, memory_mb: int) -> str:
    """How a process ended, of its exit code, and which setting may be behind it."""
    if code >= 0:
        return f"exit code {code}"
    how = f"signal {-code} ({signal.Signals(-code).name})"
    if -code == signal.SIGABRT:
        how += f", as libraries end that find no more memory: it may allocate reward.memory_mb = {memory_mb}"
    return how
