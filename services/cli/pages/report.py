"""The report: a page of what one or more runs did, that works wherever the file is opened."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from services.cli.evaluations import accuracy_interval, best, takes_turns
from services.cli.pages import run_data
from services.cli.pages.answers import answers, dropped, time_shares
from services.cli.pages.figures import plain
from services.cli.pages.render import FIGURES, SAMPLES, in_words, page
from services.cli.pages.run_data import RunData
from services.cli.pages.sample_table import SampleTable
from services.cli.pages.sections import pass_at, sections
from shared.errors import PreconditionError
from shared.resuming import dotted

PAGE = "report.html"
_SCRIPTS = (*FIGURES, *SAMPLES)
# What differs from run to run and says nothing.
_OWN_SETTINGS = ("run.id", "run.folder")
_OWN_PROVENANCE = ("run", "created", "parent", "starts", "services")
_SAMPLES = 12
_SAMPLE_NUMBERS = 200_000  # of all of them; about 2 MB of page


def write(folder: Path) -> Path:
    """Writes report.html into the run's folder and gives its path.

    Raises:
        PreconditionError: the run has no records yet.
        CorruptDataError: a file of the run that is not what a run writes.
    """
    path = folder / PAGE
    path.write_text(report([folder]), encoding="utf-8")
    return path


def report(folders: Sequence[Path]) -> str:
    """The page of these runs, overlaid where there are several.

    Raises:
        PreconditionError: a run has no records yet.
        CorruptDataError: a file of a run that is not what a run writes.
    """
    runs = [run_data.read(folder) for folder in folders]
    for run in runs:
        if run.is_empty:
            raise PreconditionError(f"run folder {run.folder} holds no records yet; a run writes them as it trains")
    names = run_data.names(runs)
    made = [section for section in sections(runs, names) if section.figures]
    differing = {
        "Settings that differ": run_data.differences([run.settings for run in runs], _OWN_SETTINGS),
        "What else differs": run_data.differences([run.provenance for run in runs], _OWN_PROVENANCE),
    }
    samples = SampleTable(folders[0]).some(_SAMPLES, _SAMPLE_NUMBERS) if len(folders) == 1 else []
    links = [(section.id, section.short) for section in made if section.short]
    links += [("samples", "Samples")] if samples else []
    links += [("evaluations", "Evaluations"), ("settings", "Settings")]
    return page(
        "report.html",
        _SCRIPTS,
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs compared",
        links=links,
        runs=[of_run(run, name) for run, name in zip(runs, names, strict=True)],
        sections=made,
        differences={
            heading: {key: [in_words(value) for value in values] for key, values in sorted(found.items())}
            for heading, found in differing.items()
            if found
        },
        page={"runs": names, "sections": plain(made), "samples": samples},
    )


def of_run(run: RunData, name: str) -> dict[str, Any]:
    """What the templates show of a run."""
    ks = pass_at(run.evaluations)
    return {
        "name": name,
        "answers": answers(run),
        "time": time_shares(run),
        "dropped": dropped(run),
        "best": best_in_words(run) if run.evaluations else "",
        "evaluation_names": [
            "set", "version", "sampled by", "pass@1", "95 %", *(f"pass@{k}" for k in ks), "greedy", "valid",
            *(["turns"] if takes_turns(run.evaluations) else []), "problems", "samples",
        ],
        "evaluations": list(_evaluation_rows(run.evaluations, ks)),
        "tables": {
            "Summary": {key: in_words(value) for key, value in dotted(run.summary).items()},
            "Provenance": {key: in_words(value) for key, value in run.provenance.items()},
            "Settings": {key: in_words(value) for key, value in sorted(run.settings.items())},
        },
    }  # fmt: skip


def best_in_words(run: RunData) -> str:
    """Which version is the best of the run, and where it lies."""
    found = best(run.folder, run.evaluations)
    places = [found[kind] for kind in ("checkpoint", "weights") if found[kind]]
    sampled_by = f", {found['sampled_by']}" if "sampled_by" in found else ""
    return f"Best: version {found['version']}" + (f" in {' and '.join(places)}" if places else "") + sampled_by


def _evaluation_rows(evaluations: Sequence[dict[str, Any]], ks: Sequence[str]) -> Iterator[list[str]]:
    for e in evaluations:
        versions = sorted({e["oldest_version"], e["newest_version"]})
        low, high = accuracy_interval(e)
        shares = [*(e["pass_at_k"].get(k) for k in ks), e["greedy_accuracy"], e["valid"]]
        shown = ["" if share is None else f"{share:.4f}" for share in shares]
        turns = [f"{e['mean_turns']:.2f}"] if takes_turns(evaluations) else []
        yield [
            e["set"], str(e["version"]), "-".join(map(str, versions)), f"{e['accuracy']:.4f}",
            f"{low:.4f} to {high:.4f}", *shown, *turns, str(e["problems"]), str(e["samples"]),
        ]  # fmt: skip
