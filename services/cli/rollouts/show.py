"""A sample as lines of text with styles: for a terminal that has colours, and for everything else."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.tracking.sample import Sample, Tokens

# A part of a line and its style, in rich's words.
Span = tuple[str, str]
Line = Sequence[Span]

_LOW_POINTS = 3
_LABEL = 10  # characters


@dataclass(frozen=True, slots=True)
class Scale:
    """What gamma is low: the lower bound that the run had, below which it counted as the bound."""

    gamma_min: float

    def style(self, gamma: float) -> str:
        if gamma < self.gamma_min:
            return "red"
        return "yellow" if gamma < (1 + self.gamma_min) / 2 else ""


def lines(samples: Iterable[Sample], scale: Scale) -> Iterator[Line]:
    """All samples, one after the other; a prompt stands once above the samples that follow each other with it."""
    prompt: tuple[str, str] | None = None
    for sample in samples:
        if (sample.trajectory.rpartition("/")[0], sample.prompt) != prompt:
            prompt = sample.trajectory.rpartition("/")[0], sample.prompt
            yield []
            yield from _block("prompt", [(visible(sample.prompt), "dim")])
        yield []
        yield from _about(sample, scale)
        yield from _response(sample, scale)


def write(shown: Iterable[Line]) -> None:
    """To stdout. Styles are for terminals; NO_COLOR leaves out the colours, a pipe gets plain text."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.text import Text
        except ModuleNotFoundError:
            pass
        else:
            console = Console(highlight=False, soft_wrap=True)
            for line in shown:
                console.print(Text.assemble(*line))
            return
    for line in shown:
        print("".join(text for text, _ in line))


def visible(text: str) -> str:
    """The text without what a terminal would take for a command: a model may write anything."""
    return "".join(character if _is_plain(character) else _escaped(character) for character in text)


def _is_plain(character: str) -> bool:
    return character in "\n\t" or character.isprintable() or character == "\u3000"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _about(sample: Sample, scale: Scale) -> Iterator[Line]:
    outcome = "" if sample.outcome == "trained" else "red"
    names = [f"step {sample.step}", sample.trajectory, *([sample.problem] if sample.problem else [])]
    yield [(f"{'sample':<{_LABEL}}", "bold"), (" · ".join(map(visible, names)), "bold"), (" · ", "bold"),
           (sample.outcome.replace("_", " "), f"bold {outcome}".strip())]  # fmt: skip
    yield [(f"{'reward':<{_LABEL}}", "bold"), (_reward(sample), "")]
    if sample.message:
        yield from _block("verifier", [(visible(sample.message), "red")])
    tokens = sample.tokens
    if tokens.ids.size:
        yield [(f"{'tokens':<{_LABEL}}", "bold"), (_tokens(sample), "")]
    if tokens.gamma is not None and tokens.ids.size:
        yield [(f"{'gamma':<{_LABEL}}", "bold"), *_gamma(sample, scale)]


def _reward(sample: Sample) -> str:
    said = ["none" if sample.reward is None else f"{sample.reward:g}"]
    if sample.parts:
        said.append(", ".join(f"{visible(name)} {value:g}" for name, value in sample.parts.items()))
    if sample.advantage is not None:
        said.append(f"advantage {sample.advantage:+.3g}")
    if sample.verifier:
        said.append(visible(f"verifier {sample.verifier} {sample.verifier_version}".rstrip()))
    return " · ".join(said)


def _tokens(sample: Sample) -> str:
    tokens = sample.tokens
    oldest, newest = int(tokens.versions.min()), int(tokens.versions.max())
    said = [f"{tokens.ids.size}, ended by {sample.finish_reason or 'unknown'}"]
    said.append(f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}")
    if tokens.log_ratio is not None:
        worst = tokens.log_ratio[np.abs(tokens.log_ratio).argmax()]
        said.append(f"log-ratio mean {tokens.log_ratio.mean():+.3f}, largest {worst:+.3f}")
    if tokens.clipped is not None and tokens.clipped.any():
        said.append(f"{int(tokens.clipped.sum())} clipped")
    return " · ".join(said)


def _gamma(sample: Sample, scale: Scale) -> Iterator[Span]:
    """Its mean, and the tokens whose routers moved most, each with the layer that moved most."""
    tokens = sample.tokens
    gamma = tokens.gamma
    if gamma is None:
        return
    yield f"mean {gamma.mean():.4f} · lowest ", ""
    for i, at in enumerate(np.argsort(gamma, kind="stable")[:_LOW_POINTS].tolist()):
        layer = _layer(sample, at)
        yield ", " if i else "", ""
        yield f"{gamma[at]:.3f}", scale.style(float(gamma[at]))
        yield f" at token {at}{_quoted(tokens, at)}{layer}", ""


def _quoted(tokens: Tokens, at: int) -> str:
    return f" {visible(tokens.pieces[at])!r}" if tokens.pieces[at] else ""


def _layer(sample: Sample, at: int) -> str:
    drift = sample.tokens.drift
    if drift is None or not np.isfinite(drift[at]).any():
        return ""
    most = int(np.nanargmax(drift[at]))
    name = sample.layers[most] if most < len(sample.layers) else most
    return f" (layer {name}: {drift[at, most]:.3f})"


def _response(sample: Sample, scale: Scale) -> Iterator[Line]:
    """A block for all that the model said, or one for each that spoke."""
    if not sample.segments:
        yield from _block("response", _sampled(sample.tokens, scale, slice(None), sample.response))
    begin = 0
    for segment in sample.segments:
        if segment.is_sampled:
            end = begin + segment.tokens
            yield from _block("response", _sampled(sample.tokens, scale, slice(begin, end), segment.text))
            if segment.reward is not None:
                yield from _block("earned", [(f"{segment.reward:.3g}", "dim")])
            begin = end
        else:
            yield from _block(segment.role, [(visible(segment.text), "dim")])


def _sampled(tokens: Tokens, scale: Scale, part: slice, text: str) -> list[Span]:
    """The pieces of some of the tokens, where they make the text; else the text."""
    gamma, pieces = tokens.gamma, tokens.pieces
    if gamma is None or not any(pieces):
        return [(visible(text), "")]
    return [(visible(piece), scale.style(float(each))) for piece, each in zip(pieces[part], gamma[part], strict=True)]


def _block(label: str, spans: Sequence[Span]) -> Iterator[Line]:
    """A text of several lines beside its label."""
    line: list[Span] = [(f"{label:<{_LABEL}}", "bold")]
    for text, style in spans:
        first, *rest = text.split("\n")
        line.append((first, style))
        for each in rest:
            yield line
            line = [(" " * _LABEL, ""), (each, style)]
    yield line
