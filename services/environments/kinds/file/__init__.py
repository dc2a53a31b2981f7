"""An environment of somebody's own, in a file."""
