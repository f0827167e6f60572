"""What the fake engine adds to the contract of test_engine_http.py: hand-offs, faults, and looking inside."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.fakes import COMPLETIONS, PROMPT, Fakes, failing, run_with_fakes, wait_until
from workers.fake import FakeEngine, FakeSettings
from workers.fake.engine import main
from workers.fake.plan import Action, Match, Plan, Timing


async def _prefill(fakes: Fakes, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    answer = await fakes.complete(engine, max_tokens=1, kv_transfer_params={"do_remote_decode": True}, **fields)
    handle: dict[str, Any] = answer["kv_transfer_params"]
    return handle


def _text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def test_hand_off_gives_the_text_of_one_engine_and_frees_the_blocks() -> None:
    async def check(fakes: Fakes) -> None:
        prefill, decode, plain = fakes.engines
        expected = _text(await fakes.complete(plain))
        handle = await _prefill(fakes, prefill)
        num_blocks = -(-len(PROMPT) // 32)
        assert (prefill.num_leases, prefill.kv_blocks_used) == (1, num_blocks)
        answer = await fakes.complete(decode, kv_transfer_params=handle)
        assert _text(answer) == expected
        assert (prefill.num_leases, prefill.kv_blocks_used) == (0, 0)
        assert decode.counters.external_hits_tokens == len(PROMPT)
        assert decode.counters.transferred_bytes == num_blocks * decode.settings.bytes_per_block
        assert decode.counters.failed_transfers == 0
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # the prefill's own hits
        again = await fakes.complete(decode, kv_transfer_params=await _prefill(fakes, prefill))
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT) // 32 * 32

    run_with_fakes(check, FakeSettings(), FakeSettings(), FakeSettings())


def test_transferred_prompt_is_not_computed_again() -> None:
    async def check(fakes: Fakes) -> None:
        prefill, decode = fakes.engines
        handle = await _prefill(fakes, prefill)
        async with asyncio.timeout(1):
            await fakes.complete(decode, kv_transfer_params=handle)

    run_with_fakes(check, FakeSettings(), FakeSettings(plan=Plan(timing=Timing(prefill_s_fixed=5))))


def test_handle_of_another_request_shows_in_the_text() -> None:
    async def check(fakes: Fakes) -> None:
        prefill, decode = fakes.engines
        right = _text(await fakes.complete(prefill))
        handle = await _prefill(fakes, prefill, prompt=PROMPT.upper())
        assert _text(await fakes.complete(decode, kv_transfer_params=handle)) != right

    run_with_fakes(check, FakeSettings(), FakeSettings())


@pytest.mark.parametrize("spoilt", ["expired", "unknown", "unreachable", "restarted", "spent"])
def test_hand_off_that_fails_is_computed_again(spoilt: str) -> None:
    async def check(fakes: Fakes) -> None:
        prefill, decode = fakes.engines
        right = _text(await fakes.complete(prefill))
        handle = await _prefill(fakes, prefill)
        if spoilt == "expired":
            await wait_until(lambda: prefill.num_leases == 0)
            assert prefill.counters.expired_leases == 1
        if spoilt == "spent":
            await fakes.complete(decode, kv_transfer_params=handle)
        wrong: dict[str, dict[str, Any]] = {
            "unknown": {"remote_request_id": "nobody"},
            "unreachable": {"remote_port": 1},
            "restarted": {"remote_engine_id": "its successor"},
        }
        handle |= wrong.get(spoilt, {})
        assert _text(await fakes.complete(decode, kv_transfer_params=handle)) == right
        assert decode.counters.failed_transfers == 1

    run_with_fakes(check, FakeSettings(kv_lease_s=0.05 if spoilt == "expired" else 30.0), FakeSettings())


def test_hand_off_that_fails_is_an_error_where_the_plan_says_so() -> None:
    async def check(fakes: Fakes) -> None:
        (decode,) = fakes.engines
        handle = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": 1}
        answer = await fakes.complete(decode, kv_transfer_params=handle)
        assert (answer["status"], answer["error"]["type"]) == (500, "InternalServerError")
        first, done = [event async for event in fakes.events(decode, kv_transfer_params=handle)]
        assert first.startswith(b'data: {"error"')
        assert done == b"data: [DONE]\n"
        assert decode.counters.finished["error"] == 2
        assert (decode.running_seqs, decode.kv_blocks_used) == (0, 0)

    run_with_fakes(check, FakeSettings(plan=Plan(kv_load_failure_policy="fail")))


def test_text_goes_on_on_another_engine() -> None:
    async def check(fakes: Fakes) -> None:
        first, second = fakes.engines
        whole = _text(await fakes.complete(first, max_tokens=20, seed=7))
        begun = _text(await fakes.complete(first, max_tokens=6, seed=7))
        rest = _text(await fakes.complete(second, prompt=PROMPT + begun, max_tokens=14, seed=7))
        assert begun + rest == whole

    run_with_fakes(check, FakeSettings(), FakeSettings())


def test_blocks_of_the_answer_are_found_by_the_next_turn() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        text = _text(await fakes.complete(engine, max_tokens=100))
        answer = await fakes.complete(engine, prompt=PROMPT + text)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == (len(PROMPT) + 99) // 32 * 32

    run_with_fakes(check)


def test_sequences_beyond_the_batch_wait() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        requests = [asyncio.create_task(fakes.complete(engine, prompt=f"{index}")) for index in range(5)]
        await wait_until(lambda: (engine.running_seqs, engine.waiting_seqs) == (2, 3))
        requests[-1].cancel()
        await wait_until(lambda: engine.waiting_seqs == 2)
        assert [answer["status"] for answer in await asyncio.gather(*requests[:-1])] == [200] * 4
        assert (engine.running_seqs, engine.waiting_seqs, engine.aborted) == (0, 0, 1)

    run_with_fakes(check, FakeSettings(plan=Plan(timing=Timing(max_running_seqs=2, decode_s_per_token=0.05))))


def test_sequences_wait_for_blocks_that_leases_keep() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        await _prefill(fakes, engine)
        answer = asyncio.create_task(fakes.complete(engine, prompt="other " * 40))
        await wait_until(lambda: engine.waiting_seqs == 1)
        assert (await answer)["status"] == 200
        assert engine.counters.expired_leases == 1

    run_with_fakes(check, FakeSettings(kv_blocks=10, max_model_len_tokens=320, kv_lease_s=0.3))


def test_client_that_leaves_aborts_every_choice() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        events = fakes.events(engine, max_tokens=1000, n=3)
        assert (await anext(events)).startswith(b"data: ")
        assert engine.running_seqs == 3
        await events.aclose()
        await wait_until(lambda: engine.running_seqs == 0)
        assert (engine.aborted, engine.kv_blocks_used) == (3, 0)

    run_with_fakes(check, FakeSettings(plan=Plan(timing=Timing(decode_s_per_token=0.05))))


def test_every_choice_and_prompt_has_its_text() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        answer = await fakes.complete(engine, prompt=["one", "two"], n=2, temperature=1, return_token_ids=True)
        texts = [choice["text"] for choice in answer["choices"]]
        assert len(set(texts)) == 4
        assert [bytes(choice["token_ids"]).decode() for choice in answer["choices"]] == texts
        assert answer["usage"]["completion_tokens"] == 32
        streamed = ["", "", "", ""]
        async for event in fakes.events(engine, prompt=["one", "two"], n=2):
            if event != b"data: [DONE]\n":
                (choice,) = json.loads(event.removeprefix(b"data: "))["choices"]
                streamed[choice["index"]] += choice["text"]
        assert streamed == texts

    run_with_fakes(check)


def test_stop_string_is_held_back_until_it_is_none() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        text = _text(await fakes.complete(engine, max_tokens=30))
        stop = text[10:14]
        answer = await fakes.complete(engine, max_tokens=30, stop=[stop, "never"])
        assert _text(answer) == text[:10]
        assert answer["choices"][0]["stop_reason"] == stop
        later = await fakes.complete(engine, max_tokens=30, stop=stop, min_tokens=14)
        assert _text(later).startswith(text[:13])
        kept = await fakes.complete(engine, max_tokens=30, stop=stop, include_stop_str_in_output=True)
        assert _text(kept) == text[:14]
        by_token = await fakes.complete(engine, max_tokens=30, stop_token_ids=[ord(text[2])])
        assert _text(by_token) == text[: text.index(text[2])]

    run_with_fakes(check)


def test_looking_inside_and_changing_the_plan() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        await fakes.complete(engine)
        (seen,) = engine.requests
        assert (seen.method, seen.route, json.loads(seen.body)["max_tokens"]) == ("POST", COMPLETIONS, 8)
        engine.set_plan(failing(Action.STATUS, Match(every=1), status=503).plan)
        assert (await fakes.complete(engine))["status"] == 503
        async with fakes.session.post(f"{engine.address}/fake/plan", json={"nonsense": 1}) as response:
            assert response.status == 400
        async with fakes.session.post(f"{engine.address}/fake/plan", json={}) as response:
            assert response.status == 200
        assert engine.plan == Plan()
        assert (await fakes.complete(engine))["status"] == 200
        assert engine.requests_seen == 5

    run_with_fakes(check)


def test_requests_in_flight_may_finish_at_shutdown() -> None:
    async def run() -> None:
        slow = Plan(timing=Timing(decode_s_per_token=0.05))
        async with aiohttp.ClientSession() as session:
            async with FakeEngine(FakeSettings(shutdown_timeout_s=5, plan=slow)).serving() as engine:
                request = asyncio.create_task(Fakes([engine], session).complete(engine))
                await wait_until(lambda: engine.running_seqs == 1)
            assert (await request)["status"] == 200

    asyncio.run(run())


def test_requests_that_hang_do_not_delay_the_shutdown_further() -> None:
    async def run() -> None:
        settings = FakeSettings(shutdown_timeout_s=0.2, plan=failing(Action.HANG_BEFORE_HEADERS).plan)
        async with aiohttp.ClientSession() as session:
            async with FakeEngine(settings).serving() as engine:
                request = asyncio.create_task(Fakes([engine], session).complete(engine))
                await wait_until(lambda: engine.requests_seen == 1)
                begin_s = asyncio.get_running_loop().time()
            assert asyncio.get_running_loop().time() - begin_s < 2
            with pytest.raises(aiohttp.ClientError):
                await request

    asyncio.run(run())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        FakeSettings(kv_blocks=4)
    with pytest.raises(ValueError, match="needs an events endpoint"):
        FakeSettings(kv_replay_endpoint="tcp://127.0.0.1:1")


def test_command_line_refuses_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"timing": {"warp": 9}}')
    for arguments, message in (
        (["--tensor-parallel-size", "2"], "unrecognized arguments"),
        (["--plan", str(plan)], "timing.warp: unknown key"),
        (["--plan", str(tmp_path / "none.json")], "No such file"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
