"""The verifiers of a recipe, called directly: rewards of TRL's side, and held-out accuracy of all sides."""

from collections.abc import Mapping
from typing import Any

from services.reward.verifiers.base import Item, Verdict, Verifier
from services.reward.verifiers.registry import make_verifiers


class Judge:
    """One started verifier."""

    def __init__(self, tables: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """
        Args:
            tables: [reward.verifiers.NAME] of the recipe.
            name: of the verifier that judges.
        """
        verifier = make_verifiers(tables)[name]
        assert isinstance(verifier, Verifier)
        verifier.start()
        self._verifier = verifier

    def verdict(self, prompt: str, response: str, reference: Mapping[str, Any]) -> Verdict:
        """What the service would say of this response."""
        return self._verifier.verify(Item(prompt, response, reference))
