"""Settings of the ranks of a learner: the tables [learner.parallel] and [learner.mesh]."""

from datetime import timedelta
from math import prod
from typing import NamedTuple

from pydantic import Field

from shared.errors import InvalidInputError
from shared.table import Table


class ParallelSettings(Table):
    """How training is spread over processes."""

    processes: int = Field(
        1, ge=1, description="ranks that the learner starts on this machine; under torchrun, torchrun starts them"
    )
    timeout_seconds: float = Field(
        1800.0, gt=0, description="how long ranks wait for one that loads the model, computes or writes a checkpoint"
    )

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_seconds)


class MeshShape(NamedTuple):
    """Ranks along each dimension of the mesh; the product is all of them."""

    replicate: int
    shard: int
    expert: int = 1
    context: int = 1

    @property
    def holders(self) -> int:
        """Ranks that share one copy of the weights."""
        return self.shard * self.expert * self.context

    @property
    def readers(self) -> int:
        """Groups of ranks that read rows of their own; each is `context` ranks, which divide every row."""
        return self.replicate * self.shard * self.expert

    def reader(self, rank: int) -> int:
        """The group that a rank belongs to. Ranks of a group are `expert` apart, as experts are among neighbours."""
        return rank // (self.context * self.expert) * self.expert + rank % self.expert


class MeshSettings(Table):
    """How the ranks divide the weights, and the rows that they train on."""

    replicate: int = Field(
        1,
        ge=1,
        description="copies of weights and moments, whose gradients are summed (HSDP); best one a machine",
    )
    shard: int | None = Field(
        None, ge=1, description="ranks over which FSDP2 divides one copy; default: all that the other dimensions leave"
    )
    expert: int = Field(
        1,
        ge=1,
        description="ranks between which the experts of a layer are divided, whole, and to which tokens travel; all "
        "other weights are divided over shard x expert x context ranks",
    )
    context: int = Field(
        1,
        ge=1,
        description="ranks that divide every row of tokens between them, for long responses; in attention each has all "
        "tokens for a part of the heads (Ulysses). Others train on rows of their own",
    )

    def fits(self, ranks: int) -> bool:
        """Whether this many ranks can be such a mesh."""
        return prod(self._shape(ranks)) == ranks

    def over(self, ranks: int) -> MeshShape:
        """The shape of the mesh of this many ranks.

        Raises:
            InvalidInputError: the product of the dimensions is another number.
        """
        shape = self._shape(ranks)
        if (product := prod(shape)) == ranks:
            return shape
        dimensions = " x ".join(f"{name} {size}" for name, size in shape._asdict().items())
        raise InvalidInputError(
            f"learner.mesh has {dimensions} = {product} ranks, and the learner has {ranks}; change it, or start "
            f"{product} ranks: with learner.parallel.processes, or torchrun"
        )

    def _shape(self, ranks: int) -> MeshShape:
        left = max(1, ranks // (self.replicate * self.expert * self.context))
        return MeshShape(self.replicate, left if self.shard is None else self.shard, self.expert, self.context)
