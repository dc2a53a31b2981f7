"""The gRPC methods of reward."""

from functools import partial

from routershift import wire
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import reward_pb2_grpc as rew_grpc
from services.reward.early import EarlyScores
from services.reward.messages import decode_item, encode_score
from services.reward.scoring import Scorer
from services.reward.verifiers.base import parts_schema
from shared.rpc.server import begin


class RewardServicer(rew_grpc.RewardServiceServicer):
    def __init__(self, scorer: Scorer, early: EarlyScores) -> None:
        """Args: early: keeps the scores of calls that are early."""
        self._scorer = scorer
        self._early = early

    async def Score(self, request: rew.ScoreRequest, context: object) -> rew.ScoreResponse:
        items = [decode_item(item) for item in request.items]
        scorer = self._early if request.early else self._scorer
        scored = await scorer.score(request.verifier, items, admitted=partial(begin, context))
        return rew.ScoreResponse(scores=[encode_score(s) for s in scored])

    async def ListVerifiers(self, request: rew.ListVerifiersRequest, context: object) -> rew.ListVerifiersResponse:
        return rew.ListVerifiersResponse(
            verifiers=[
                rew.Verifier(
                    name=name,
                    version=v.judged_by,
                    description=v.description,
                    reference_schema=wire.encode_struct(v.reference_schema),
                    parts_schema=wire.encode_struct(parts_schema(v.part_names)),
                )
                for name, v in self._scorer.verifiers.items()
            ]
        )
