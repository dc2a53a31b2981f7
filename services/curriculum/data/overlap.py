"""What rows have in common: duplicates, training prompts in held-out sets, and the held-out share of a source."""

import hashlib
from dataclasses import dataclass, field

from services.curriculum.data.items import Item
from services.curriculum.data.report import Report, SourceReport
from services.curriculum.data.settings import DataSettings
from shared.errors import InvalidInputError, RouterShiftError


@dataclass
class Loaded:
    """The usable rows, by table, and the report on all of them."""

    train: list[list[Item]] = field(default_factory=list)
    eval: list[list[Item]] = field(default_factory=list)  # one list a table, or the one that is split off
    report: Report = field(default_factory=Report)
    errors: list[RouterShiftError] = field(default_factory=list)  # why a start is refused

    def fail(self, error: RouterShiftError) -> None:
        self.errors.append(error)
        self.report.problems.append(str(error))


def drop_duplicates(loaded: Loaded, data: DataSettings) -> None:
    """In all training sources together, and in each held-out set; the first row of a problem stays."""
    if data.duplicates == "keep":
        return
    seen: dict[tuple[str, str], Item] = {}
    for items, report in zip(loaded.train, loaded.report.train, strict=True):
        _drop_seen(items, report, seen)
    for items, report in zip(loaded.eval, loaded.report.eval, strict=True):
        _drop_seen(items, report, {})
    if data.duplicates == "refuse":
        for report in (*loaded.report.train, *loaded.report.eval):
            if report.duplicates:
                loaded.fail(
                    InvalidInputError(
                        f"{report.where}: {report.duplicates} of {report.rows} rows ask what another row asks, as "
                        f"{report.examples['duplicates'][0]}; take them out, or set data.duplicates to drop or keep"
                    )
                )


def _drop_seen(items: list[Item], report: SourceReport, seen: dict[tuple[str, str], Item]) -> None:
    kept = []
    for item in items:
        if (first := seen.setdefault((item.key, item.variant), item)) is item:
            kept.append(item)
        else:
            report.duplicates += 1
            report.note("duplicates", f"{place(item)} is {place(first)}")
    items[:] = kept


def note_conflicts(loaded: Loaded) -> None:
    """Counts, in all training sources together and in each held-out set, what one prompt has several references for."""
    seen: dict[tuple[str, bytes], Item] = {}
    for items, report in zip(loaded.train, loaded.report.train, strict=True):
        _note_conflicts(items, report, seen)
    for items, report in zip(loaded.eval, loaded.report.eval, strict=False):  # a split-off set has no table
        _note_conflicts(items, report, {})


def _note_conflicts(items: list[Item], report: SourceReport, seen: dict[tuple[str, bytes], Item]) -> None:
    for item in items:
        if item.environment:  # one prompt may begin many episodes
            continue
        prompt = hashlib.blake2b(item.token_ids.tobytes(), digest_size=16).digest()
        first = seen.setdefault((item.verifier, prompt), item)
        if item.reference != first.reference:
            report.conflicts += 1
            report.note("conflicts", f"{place(item)} and {place(first)}")


def drop_contaminated(loaded: Loaded, data: DataSettings) -> None:
    if data.contamination == "off":
        return
    evaluated = [item for items in loaded.eval for item in items]
    held_out = {item.key: item for item in evaluated}
    # A problem that is asked in one turn here and in an environment there is the same by what it says.
    asked = {(item.environment != "", item.said): item for item in evaluated}
    for items, report in zip(loaded.train, loaded.report.train, strict=True):
        kept = []
        for item in items:
            if (twin := held_out.get(item.key) or asked.get((item.environment == "", item.said))) is None:
                kept.append(item)
            else:
                report.contaminated += 1
                report.note("contaminated", f"{place(item)} is {place(twin)}")
        items[:] = kept
        if report.contaminated and data.contamination == "refuse":
            loaded.fail(
                InvalidInputError(
                    f"{report.where}: {report.contaminated} training prompts stand in a held-out set, as "
                    f"{report.examples['contaminated'][0]}; take them out, or set data.contamination to drop"
                )
            )


def split_off(loaded: Loaded, share: float) -> None:
    """Holds out the share of problems whose hashes are lowest: for every seed the same, and whatever rows are added."""
    everything = [item for items in loaded.train for item in items]
    hashes = sorted({place_in_order(item.key) for item in everything})
    if len(hashes) < 2:
        if not loaded.errors:
            for items, report in zip(loaded.train, loaded.report.train, strict=True):
                report.used = len(items)
            found = f"data.train has {len(hashes)} usable problem{'' if hashes else 's'}"
            rows = "; ".join(map(str, loaded.report.train))
            needed = "it needs 2, one of them to hold out, or a table [[data.eval]]"
            loaded.fail(InvalidInputError(f"{found}, of {rows}: {needed}"))
        loaded.eval.append([])
        return
    # Of few rows, none may be below the share: one is held out at least, and one is trained on.
    limit = min(max(share, hashes[0]), hashes[-2])
    held_out: list[Item] = []
    for items, report in zip(loaded.train, loaded.report.train, strict=True):
        out = [item for item in items if place_in_order(item.key) <= limit]
        report.held_out = len(out)
        held_out += out
        items[:] = [item for item in items if place_in_order(item.key) > limit]
    loaded.eval.append(held_out)


def place_in_order(key: str) -> float:
    """Uniform in [0, 1)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def place(item: Item) -> str:
    return f"{item.row.file}:{item.row.number}"
