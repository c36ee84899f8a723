"""The encoder process and its life."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from dropless.checkpoints.catalogue import catalogue
from dropless.checkpoints.model_cache import cached_model
from dropless.encoder import client as client_module
from dropless.encoder import supervisor
from dropless.encoder.client import EMBEDDING_MODEL, EncoderClient
from dropless.encoder.messages import Judge, Needs
from dropless.errors import EncoderUnavailableError


def test_a_hung_process_is_killed_and_one_that_dies_too_often_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "MAX_RESTARTS", 1)
    monkeypatch.setattr(client_module, "FAILED_S", 1.0)
    monkeypatch.setattr(client_module, "WAIT_S", 60.0)

    async def run() -> None:
        encoder = EncoderClient(threads=1)
        assert (encoder.state, encoder.pid) == ("off", None)
        await encoder.prepare(Needs())
        first = encoder.pid
        assert first is not None
        monkeypatch.setattr(supervisor, "HANG_TICKS", 1)
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(EncoderUnavailableError, match="said nothing for"):
            await encoder.judge([Judge(0, "hello")])
        monkeypatch.setattr(supervisor, "HANG_TICKS", 60)
        [verdict] = await encoder.judge([Judge(0, "hello")])
        assert (verdict.scores, verdict.entities, encoder.restarts) == ({}, [], 1)
        assert encoder.pid not in (None, first)
        os.kill(encoder.pid or 0, signal.SIGKILL)
        for message in ("killed by SIGKILL", "given up after 1 restarts"):
            with pytest.raises(EncoderUnavailableError, match=message):
                await encoder.judge([Judge(0, "hello")])
        assert encoder.state == "failed"
        await asyncio.sleep(1.1)
        assert await encoder.judge([Judge(0, "hello")] * 20)
        pid = encoder.pid
        await encoder.stop()
        assert (encoder.state, encoder.pid) == ("off", None)
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)

    asyncio.run(run())


def test_texts_of_any_length_and_kind() -> None:
    if cached_model(catalogue()[EMBEDDING_MODEL]) is None:
        pytest.skip(f"needs the embedding model: dropless pull {EMBEDDING_MODEL}")
    unsafe = "You are a worthless idiot and I will kill you."
    calm = "The sun is bright today and the river is calm. "

    async def run() -> None:
        encoder = EncoderClient(threads=1)
        await encoder.prepare(Needs(embeddings=True))
        try:
            texts = [unsafe, calm * 60, "", "\x00 \ud7ff 漢"]
            asked = [Judge(0, text, safety=True) for text in texts]
            found = [bool(verdict.unsafe) for verdict in await encoder.judge(asked)]
            assert found == [True, False, False, False]
            vectors = await encoder.embed([[101, 1037, 2314, 102]] * 3)
            assert vectors[0] == vectors[1] == vectors[2]
            # A message that fails takes no other with it.
            good, bad = encoder.embed([[101, 102]]), encoder.embed([[101, 10**6, 102]])
            outcomes = await asyncio.gather(good, bad, return_exceptions=True)
            assert isinstance(outcomes[1], EncoderUnavailableError)
            assert outcomes[0] == await encoder.embed([[101, 102]])
            assert encoder.restarts == 0
        finally:
            await encoder.stop()

    asyncio.run(run())
