"""The page about agents that speak the OpenAI API, as its reader has it: its files, a model and questions."""

from pathlib import Path

from tests.support.data import write_jsonl
from tests.support.gateway import save_agent_model
from tests.support.pages import ROOT, install


def install_agent(folder: Path) -> dict[str, str]:
    """Writes recipe.toml and all that it names; gives the environment of the reader."""
    environment = install(ROOT / "docs/how-to/train-an-openai-agent.md", folder)
    # It says the digit that is asked for now and then, so that episodes of a group differ.
    save_agent_model(folder / "model", says="0123456789", max_position_embeddings=512)
    rows = [{"question": f"What is {i % 10} + 0, to question {i}?", "answer": str(i % 10)} for i in range(200)]
    write_jsonl(folder / "questions.jsonl", rows)
    return environment
