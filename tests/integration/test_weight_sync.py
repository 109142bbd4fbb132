"""Engines that break, refuse or hang while they are met or receive weights; in Ray, with stand-ins for their actors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from learner.weight_sync import RayWeightSyncClient
from mrpo.errors import ReceiverLostError, WeightSyncError

# Ray's workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENCE_S = 120.0  # on a busy machine
WHOLE = ["init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"]


class Engine:
    """Writes down what it is asked; one method of it fails."""

    def __init__(self, method: str = "", fault: str = "") -> None:
        self._method, self._fault = method, fault
        self._asked: list[str] = []

    async def diary(self) -> list[str]:
        return self._asked

    async def _answer(self, method: str) -> None:
        self._asked.append(method)
        if method == self._method:
            if self._fault == "hangs":
                await asyncio.sleep(3600)
            raise WeightSyncError("bucket 3 is damaged") if self._fault == "refuses" else RuntimeError("CUDA\nerror")

    async def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        await self._answer("init_weight_transfer_engine")

    async def start_weight_update(self) -> None:
        await self._answer("start_weight_update")

    async def update_weights(self, info: dict[str, Any]) -> None:
        await self._answer("update_weights")

    async def finish_weight_update(self) -> None:
        await self._answer("finish_weight_update")

    async def load_adapter(self, files: dict[str, bytes]) -> None:
        await self._answer("load_adapter")


def actor(method: str = "", fault: str = "") -> Any:
    return ray.remote(Engine).options(num_cpus=0).remote(method, fault)


def diary(handle: Any) -> list[str]:
    found: list[str] = ray.get(handle.diary.remote(), timeout=PATIENCE_S)
    return found


def send(client: RayWeightSyncClient) -> None:
    client.init_weight_transfer_engine({})
    client.start_weight_update()
    client.update_weights({})
    client.finish_weight_update()


@pytest.fixture(scope="module")
def sound(ray_session: None) -> Iterator[Any]:
    """What it was asked before is in its diary."""
    handle = actor()
    yield handle
    ray.kill(handle)


@pytest.mark.parametrize("number", [1, 3])
def test_an_engine_that_breaks_in_an_update_is_left_inside_and_the_others_get_the_weights(
    sound: Any, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    broken = actor(WHOLE[number], "breaks")
    before = len(diary(sound))
    send(RayWeightSyncClient([broken, sound]))
    assert diary(sound)[before:] == WHOLE
    assert diary(broken) == WHOLE[: number + 1]
    assert "receiver 0 of 2 is left behind: RuntimeError: CUDA error" in caplog.text


def test_an_adapter_that_one_engine_cannot_take_reaches_the_others(sound: Any) -> None:
    RayWeightSyncClient([actor("load_adapter", "breaks"), sound]).load_adapter({})
    assert diary(sound)[-1] == "load_adapter"


def test_where_all_receive_together_one_that_breaks_ends_it_for_all(sound: Any) -> None:
    client = RayWeightSyncClient([actor("update_weights", "breaks"), sound], together=True)
    with pytest.raises(ReceiverLostError, match="lost during the weight update: RuntimeError: CUDA error"):
        send(client)


def test_it_ends_where_no_engine_is_left(ray_session: None) -> None:
    with pytest.raises(ReceiverLostError, match="no engine is left to receive weights: RuntimeError: CUDA error"):
        send(RayWeightSyncClient([actor("update_weights", "breaks")]))


def test_a_refusal_is_no_loss(sound: Any) -> None:
    """What is sent is wrong, and would be again."""
    with pytest.raises(WeightSyncError, match="refused the weight update: bucket 3 is damaged") as caught:
        send(RayWeightSyncClient([actor("update_weights", "refuses"), sound]))
    assert not isinstance(caught.value, ReceiverLostError)


@pytest.mark.parametrize("fault", ["hangs", "breaks"])
def test_an_engine_that_is_not_met_is_waited_for_once_and_found_inside_an_update(
    sound: Any, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    lost = actor("init_weight_transfer_engine", fault)
    before = len(diary(sound)) + len(diary(lost))
    client = RayWeightSyncClient([lost, sound], answer_timeout_s=5.0)
    send(client)
    client.start_weight_update()
    assert diary(sound)[before:] == [*WHOLE, "start_weight_update"]
    assert diary(lost) == WHOLE[:2], "nobody takes it for one that has the weights"
    assert caplog.text.count("is left behind") == 1
