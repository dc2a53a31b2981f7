"""The optimizer step in the traces of the prompts that it was taken for.

A step serves many prompts, and a span has one parent. So the step is a trace of its own, recorded once with what it is
made of, and each prompt's trace has a span of the same time that links to it. The links run this way because a span
holds a limited number of them (128 in the SDK), and a step may have more groups than that.
"""

from collections.abc import Sequence

from services.learner.data.messages import Scored
from shared.tracing import spans
from shared.tracing.kinds import BATCH, STEP, TRAIN, Nothing, Step, Training


def step_span(batch: Sequence[Scored], step: int) -> spans.Span[Step]:
    """The span of a step that begins now; it is recorded where the trace of a group in its batch is."""
    span = spans.root(STEP) if any(scored.entry.traceparent for scored in batch) else spans.Span[Step](None)
    span.set({"step": step, "groups": len(batch)})
    return span


def record_batch(
    batch: Sequence[Scored], staleness: Sequence[int], step: int, began: float, link: str, skipped: str
) -> None:
    """Records in the trace of each group how long it waited for the step that has just been computed, and the step.

    Args:
        staleness: of each group, in versions.
        step: its number, from 1.
        began: when it did, in seconds since 1970.
        link: traceparent of the span of the step.
        skipped: why nothing was learnt; '' for a step that was taken.
    """
    for scored, versions in zip(batch, staleness, strict=True):
        if parent := scored.entry.traceparent:
            spans.record(BATCH, parent, Nothing(), scored.received_at, began)
            tokens = sum(sample.completion.token_ids.size for sample in scored.group.samples)
            about = Training(step=step, staleness=versions, samples=len(scored.group.samples), tokens=tokens)
            spans.record(TRAIN, parent, about, began, link=link, failed=skipped)
