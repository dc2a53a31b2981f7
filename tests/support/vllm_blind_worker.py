"""A seam whose router taps never fire, as with an MoE backend that routes inside its kernel."""

from typing import Any

from services.generation.engines.vllm.child.worker import RouterWorker


class BlindWorker(RouterWorker):
    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        for router in self._routers.values():
            del router._compute_routing  # the tap is an attribute of the instance, before the method of the class
