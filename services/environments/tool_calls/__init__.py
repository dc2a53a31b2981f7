"""Calls of tools, read out of what a model says, by the form that its family writes them in."""
