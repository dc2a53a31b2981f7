"""The page of a run that is looked into while it trains."""

from pathlib import Path

from services.cli.pages import run_data
from services.cli.pages.figures import plain
from services.cli.pages.render import FIGURES, SAMPLES, page
from services.cli.pages.report import of_run
from services.cli.pages.sections import sections
from shared.tracking import records

_SCRIPTS = (*FIGURES, *SAMPLES, "live.js")


def view(folder: Path, tag: str) -> str:
    """The page as it is now; it asks its server for samples and for newer versions of itself.

    Args:
        tag: names this version of the page.

    Raises:
        CorruptDataError: a file of the run that is not what a run writes.
    """
    run = run_data.read(folder)
    made = sections([run], [run.name])
    return page(
        "view.html",
        _SCRIPTS,
        connects=True,
        title=run.name,
        links=[("samples", "Samples"), *((section.id, section.short) for section in made if section.short)],
        runs=[of_run(run, run.name)],
        sections=made,
        page={"runs": [run.name], "sections": plain(made), "samples": None, "tag": tag},
    )


def state(folder: Path, samples: int) -> str:
    """Changes whenever the page would."""
    files = (records.LEARNER, records.EVALUATIONS, records.SUMMARY, records.PROVENANCE)
    sizes = [(folder / name).stat().st_size if (folder / name).is_file() else 0 for name in files]
    return "-".join(map(str, [*sizes, samples]))
