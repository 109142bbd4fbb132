"""What runs inside a judge actor: a plain class, made an actor by the pool."""

from __future__ import annotations

from judge.accounting import RequestUsage, Served
from judge.api_key import read_api_key
from judge.client import JudgeClient
from judge.limiter import Limiter
from mrpo.config import JudgeConfig
from mrpo.types import AnswerJudgement, AnswerRequest, Judgement, JudgeRequest


class JudgeWorker:
    """One client in one process. The key is read from this process's environment and never leaves it."""

    def __init__(self, config: JudgeConfig, *, concurrency: int, limiter: Limiter | None) -> None:
        assert config.model is not None
        self._model = config.model
        self._api_key = read_api_key(config.api_key_env)
        self._client = JudgeClient(config, concurrency=concurrency, limiter=limiter, api_key=self._api_key)

    async def has_key(self) -> bool:
        """Whether this process has the key. Answering at all says that the worker is up."""
        return self._api_key is not None

    async def rule(self, request: JudgeRequest | AnswerRequest, max_attempts: int) -> Served:
        """See `JudgeClient.judge` and `JudgeClient.judge_answer`."""
        judgement: Judgement | AnswerJudgement
        if isinstance(request, AnswerRequest):
            judgement = await self._client.judge_answer(request, max_attempts=max_attempts)
        else:
            judgement = await self._client.judge(request, max_attempts=max_attempts)
        usage = RequestUsage(
            endpoint=0,
            model=self._model,
            prompt_tokens=judgement.prompt_tokens or None,
            completion_tokens=judgement.completion_tokens or None,
        )
        others = (RequestUsage(endpoint=0, model=self._model),) * (judgement.attempts - 1)
        return Served(judgement=judgement, requests=(*others, usage), model=self._model)
