"""The environments that come with RouterShift."""
