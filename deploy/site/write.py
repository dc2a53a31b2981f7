"""Writes the pages of docs/reference that follow from the code: `make reference`."""

from pathlib import Path

from deploy.site import commands, environments, metrics, protocol, verifiers
from services.cli.commands import settings

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {
    "commands.md": commands.page,
    "environments.md": environments.page,
    "metrics.md": metrics.page,
    "protocol.md": protocol.page,
    "settings.md": settings.page,
    "verifiers.md": verifiers.page,
}
_MADE = "\nMade by `make reference` from the code.\n"


def main() -> None:
    for name, page in PAGES.items():
        title, _, rest = page().partition("\n")
        (REFERENCE / name).write_text(f"{title}\n{_MADE}{rest.rstrip()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
