"""One model at a time is loaded with transformers."""

from threading import Lock

# Hold it for each `from_pretrained`. While transformers 5 loads a model, it turns the tying of weights off for all of
# them, and then puts back what it found (`transformers.initialization.no_tie_weights`, 5.19). Where two threads load at
# once, the last to end puts back nothing, and until the process ends no model ties its head to its embedding.
LOADING = Lock()
