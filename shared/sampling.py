"""The range of every sampling parameter, as vLLM takes them: the service takes the same whatever engine samples."""

# vLLM raises lower temperatures to it: logits divided by less overflow. 0 is greedy, and a range of its own.
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 2.0
MAX_SAMPLES = 1024
MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 256
