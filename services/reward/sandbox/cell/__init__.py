"""What runs inside of the sandbox, with the standard library only: nothing here can trust the program it runs.

`main` shuts the process in and takes one job; `namespaces` and `limits` are the walls; `programs` runs programs on
stdin and stdout; `tests` and `solution` are the two ends of a run of tests, over `remote`.
"""
