"""A trained version as a Hugging Face folder, for transformers, vLLM and the hub."""

import argparse
import shlex
from pathlib import Path

from services.cli.arguments import add_run
from services.cli.exporting.card import ADAPTERS_IN_VLLM
from services.cli.exporting.folder import BEST, export
from services.cli.folders import run_folder
from shared import sizes
from shared.process.exits import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to make; must be empty or not there")
    parser.add_argument(
        "--version", default=BEST, metavar="V", help=f"a version that is kept, or {BEST} (held-out accuracy); default"
    )
    parser.add_argument("--adapter", action="store_true", help="the LoRA adapters alone, not the merged model")
    parser.add_argument("--push", metavar="NAME", help="say which command uploads it to the hub as NAME")


def run(arguments: argparse.Namespace) -> int:
    exported = export(run_folder(arguments.name), arguments.version, arguments.folder, arguments.adapter)
    print(f"version {exported.version}, {sizes.in_words(exported.size_bytes)}, verified: {exported.folder}")
    if arguments.adapter:
        print(ADAPTERS_IN_VLLM)
    if arguments.push:
        print(f"to upload it: {shlex.join(['hf', 'upload', arguments.push, str(exported.folder)])}")
    return EXIT_OK
