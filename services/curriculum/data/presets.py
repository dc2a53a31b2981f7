"""Known forms of data sets: what a source with `preset = NAME` says where its table says nothing.

Data only: the keys are those of a table [[data.train]] or [[data.eval]].
"""

from collections.abc import Mapping
from typing import Any

_FINAL_ANSWER = "{{ prompt }}\n\nThink step by step, then give the final answer after ####."

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # openai/gsm8k: question, and answer whose last line is "#### 18".
    "gsm8k": {
        "config": "main",
        "columns": {"prompt": "question", "answer": "{{ answer | after('####') | replace(',', '') }}"},
        "prompt": _FINAL_ANSWER,
        "verifier": "math",
    },
}
