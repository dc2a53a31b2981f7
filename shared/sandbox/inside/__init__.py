"""What runs inside of the sandbox, with the standard library only: nothing here can trust the program it runs.

`fork_server` shuts a process in and has it take one job; `namespaces`, `limits` and `seccomp` are the walls;
`programs` and `interpreter` run programs on stdin and stdout; `tests` and `solution` are the two ends of a run of
tests, over `remote`; `comparison` says which outputs are the same, inside and outside.
"""
