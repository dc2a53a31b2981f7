"""What the `source` of a data table is: a file, a glob of files, a procedural task, or the name of a data set."""

PROCEDURAL = "reasoning_gym:"  # before the name of a task of that library
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def is_file(source: str) -> bool:
    """Whether a source is a file or a glob of files, and no name of a data set."""
    return source.removesuffix(".gz").endswith(ENDINGS) or source.startswith(("/", "./", "../")) or is_glob(source)


def is_glob(source: str) -> bool:
    return any(sign in source for sign in "*?[")
