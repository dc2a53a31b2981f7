"""One model at a time is loaded with transformers."""

from threading import Lock

# Hold it for each `from_pretrained`. transformers 5 turns the tying of weights off for all models while it loads one,
# and puts back what it found (transformers.initialization.no_tie_weights, 5.19): where two threads load at once, the one
# that ends last puts back nothing, and until the process ends no model ties its head to its embedding.
LOADING = Lock()
