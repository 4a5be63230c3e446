"""All members' models, fetched onto one disk while they train on."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from node.errors import UserError
from node.gossip.port import GossipPort
from protocol.effects import ModelFetched
from protocol.events import Event, ModelWanted
from protocol.ids import PeerId

_WAIT_S: Final = 600.0
_AT_ONCE: Final = 8


async def gather(
    port: GossipPort, post: Callable[[Event], None], members: Sequence[PeerId]
) -> list[dict[str, Any]]:
    """Of each member where its model is, or why it is not here. For the driver's loop. Raises
    UserError.
    """
    turn = asyncio.Semaphore(_AT_ONCE)
    size = port.model_bytes
    if size is None:
        raise UserError("this peer is still loading its model", "try again in a while")

    async def one(peer: PeerId) -> dict[str, Any]:
        async with turn:
            found = await _fetch(port, post, peer, size)
        if found is None or found.model is None:
            why = "it did not come in time" if found is None else found.reason
            return {"peer": peer.hex(), "why": why}
        return {
            "peer": peer.hex(),
            "root": found.model.root.hex(),
            "size": found.model.size,
            "tokens": found.tokens,
            "exchange": found.number,
            "told_heldout_loss": found.heldout,
        }

    return list(await asyncio.gather(*(one(peer) for peer in members)))


async def _fetch(
    port: GossipPort, post: Callable[[Event], None], peer: PeerId, size: int
) -> ModelFetched | None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[ModelFetched] = loop.create_future()

    def done(fetched: ModelFetched) -> None:
        if not answer.done():
            answer.set_result(fetched)

    sequence = port.expect(peer, done)
    post(ModelWanted(peer, sequence, size))
    try:
        return await asyncio.wait_for(answer, _WAIT_S)
    except TimeoutError:
        port.expect_no_more(peer, sequence)
        return None
