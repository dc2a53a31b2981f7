"""The tags around thoughts."""

THINK = "think"

# Those of DeepSeek-R1 and Qwen, of older reasoning data, of Magistral, and of Kimi.
THOUGHTS = (
    *((f"<{tag}>", f"</{tag}>") for tag in (THINK, "thinking", "thought", "reasoning")),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
