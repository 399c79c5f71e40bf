"""Policies of one's own and by attention: how they are named, and that their cache is exact."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from naive import NaiveLayer, naive_logits
from transformers import Cache
from zoo import ZOO, zoo_float32, zoo_model

from sinkviz import registry
from sinkviz.models import untouched
from sinkviz.policies import (
    H2O,
    TOVA,
    Dense,
    Recompute,
    SinkWindow,
    Window,
    check_registered,
    first_eviction,
    parse_policy,
    register_policy,
    visibility,
)
from sinkviz.ranked import RankedCache
from sinkviz.records import StreamRun


@register_policy("every")
@dataclass(frozen=True)
class EverySecond:
    """Sinks, the most recent tokens, and every second one of as many before these."""

    n_sink: int = 2
    n_recent: int = 5
    n_thin: int = 3

    @property
    def cache_size(self):
        return self.n_sink + self.n_recent + self.n_thin

    def keep(self, n):
        recent = n - self.n_recent
        thin = [i for i in range(recent - 2 * self.n_thin, recent) if i % 2 == 0]
        return sorted({*range(min(n, self.n_sink)), *thin, *range(recent, n)} & {*range(n)})


@register_policy("halving")
@dataclass(frozen=True)
class Halving:
    """Let the text grow up to a size, then forget all but its last half at once."""

    cache_size: int = 8

    def keep(self, n):
        half = self.cache_size // 2
        return list(range(max(0, (n - 1) // half - 1) * half, n))


@pytest.fixture
def names():
    """Forget the names that a test registers."""
    before = dict(registry.POLICIES)
    yield
    registry.POLICIES.clear()
    registry.POLICIES.update(before)


def text(n: int, rows: int | None = None) -> torch.Tensor:
    shape = (n,) if rows is None else (rows, n)
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(1))


def stepwise(lm, cache: RankedCache, ids: torch.Tensor, sizes: list[int] | None = None):
    """Return the logits after each token, fed in passes of these sizes, by default one each."""
    batch = ids if ids.ndim == 2 else ids[None]
    with untouched(lm.model, "eager" if cache.observes else None):
        logits = [
            lm.model(part, past_key_values=cache, use_cache=True).logits
            for part in batch.split(sizes or 1, 1)
        ]
    whole = torch.cat(logits, 1)
    return whole if ids.ndim == 2 else whole[0]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)


# Names --------------------------------------------------------------------------------------------

EVERY_KIND = [
    Dense(),
    Window(9),
    SinkWindow(4, 60),
    SinkWindow(4, 60, "text"),
    SinkWindow(0, 9),
    SinkWindow(0, 9, "text"),
    Recompute(64),
    Recompute(64, n_begin=0),
    Recompute(64, n_begin=3),
    H2O(3, 5),
    TOVA(7),
    EverySecond(1, 2, 3),
]


@pytest.mark.parametrize("policy", EVERY_KIND, ids=str)
def test_a_policy_reads_as_it_is_written(policy, tmp_path):
    assert parse_policy(str(policy)) == policy
    assert parse_policy(f"  {str(policy).capitalize()} ") == policy
    run = StreamRun(policy, np.arange(3), np.array([np.nan, 1.0, 2.0]))
    assert StreamRun.load(run.save(tmp_path / "run.safetensors")).policy == policy


def test_policies_by_attention_and_of_ones_own_have_texts():
    assert parse_policy("h2o:32+32") == H2O()
    assert parse_policy("tova:64") == TOVA()
    assert str(H2O(3, 5)) == "h2o:3+5"
    assert parse_policy("sink:4+60") == SinkWindow(4, 60)
    assert parse_policy("recompute 64") == Recompute(64)
    assert str(EverySecond()) == "every:2+5+3" and parse_policy("every:1").n_sink == 1


def test_what_a_policy_of_ones_own_leaves_out_is_filled_in():
    assert (EverySecond().recompute, EverySecond().positions) == (False, "cache")
    assert (Halving().n_sink, Halving().n_recent, Halving().by_attention) == (0, None, False)
    assert EverySecond(n_sink=4).n_sink == 4


def test_which_policies_have_positions_within_the_cache():
    found = {str(policy): policy.positions for policy in EVERY_KIND}
    in_text = [name for name, positions in found.items() if positions == "text"]
    assert in_text == ["Dense", "4+60@text", "0+9@text"]
    assert set(found.values()) == {"cache", "text"}


def test_a_cell_of_a_notebook_may_be_run_again(names):
    for size in (3, 4):

        @register_policy("again")
        @dataclass(frozen=True)
        class Again:
            cache_size: int = size

            def keep(self, n):
                return list(range(max(0, n - self.cache_size), n))

    assert parse_policy("again:3") == Again(3)
    assert str(Again()) == "again:4"


def bad(frozen: bool = True, **body: object) -> type:
    made = type("Bad", (), {"__module__": __name__, **body})
    return dataclass(frozen=frozen)(made)


def keeping(rule) -> type:
    return bad(cache_size=4, keep=lambda self, n: rule(n))


def only_itself(self, n: int) -> list[int]:
    return [n - 1]


@pytest.mark.parametrize(
    "policy",
    [
        Dense(),
        Window(6),
        SinkWindow(2, 4),
        Recompute(6),
        EverySecond(),
        EverySecond(0, 1, 4),
        Halving(),
    ],
)
@pytest.mark.parametrize("length", [1, 5, 6, 7, 8, 9, 10, 30])
def test_first_eviction_is_where_something_is_missing(policy, length):
    short = [n - 1 for n in range(1, length + 1) if policy.keep(n) != list(range(n))]
    assert first_eviction(policy, length) == (short[0] if short else None)


def test_first_eviction_by_attention_is_where_the_cache_is_full():
    assert first_eviction(H2O(4, 4), 9) == first_eviction(TOVA(8), 9) == 8
    assert first_eviction(H2O(4, 4), 8) is None


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("h2o", lambda: bad(cache_size=4, keep=only_itself), "'h2o' is taken by H2O"),
        ("4+4", lambda: bad(cache_size=4, keep=only_itself), "a word such as 'every', got '4\\+4'"),
        ("new", lambda: Dense.__mro__[1], "object is no frozen dataclass"),
        ("new", lambda: bad(False, cache_size=4, keep=only_itself), "Bad is no frozen dataclass"),
        ("new", lambda: bad(cache_size=4), "Bad has no keep"),
        ("new", lambda: bad(keep=only_itself), "Bad has no cache_size"),
        ("new", lambda: bad(cache_size=4, by_attention=True), "Bad has no drop"),
        ("new", lambda: keeping(lambda n: [0]), r"new: keep\(2\) must hold the token itself, 1"),
        ("new", lambda: keeping(lambda n: [*range(n)]), r"keep\(5\) holds 5 tokens, cache_size is"),
        ("new", lambda: keeping(lambda n: [n - 1, 0]), r"keep\(1\) must be in text order"),
        ("new", lambda: keeping(lambda n: [n - 1, n]), r"keep\(1\) holds token 1, which is not in"),
        (
            "new",
            lambda: keeping(lambda n: sorted({0, n - 1} if n % 3 else {n - 1})),
            r"keep\(4\) holds token 0, which keep\(3\) left out",
        ),
        (
            "new",
            lambda: bad(
                __annotations__={"share": "float"}, share=0.5, cache_size=4, keep=only_itself
            ),
            r"written 'new:0.5', which reads as ValueError.*from_text",
        ),
    ],
)
def test_what_is_no_policy_is_not_registered(names, name, make, message):
    before = dict(registry.POLICIES)
    with pytest.raises(ValueError, match=message):
        register_policy(name, make())
    assert registry.POLICIES == before


def test_a_policy_must_be_registered_and_its_text_known():
    with pytest.raises(ValueError, match="no policy that is registered"):
        check_registered(bad(cache_size=4, keep=only_itself)())
    with pytest.raises(ValueError, match=r"known are dense, sink:N\+N, .*, tova:N, every:N\+N\+N"):
        parse_policy("every-third:4")
    with pytest.raises(ValueError, match="expected 1 to 3 sizes"):
        parse_policy("every:1+2+3+4")
    with pytest.raises(ValueError, match=r"no policy 'h2o:-1\+2'"):
        parse_policy("h2o:-1+2")


def test_a_policy_by_attention_tells_nothing_without_a_text():
    for ask in (lambda: H2O(2, 2).keep(5), lambda: visibility(TOVA(4), 6)):
        with pytest.raises(ValueError, match="keeps what a text makes it keep"):
            ask()


# A cache for any policy ---------------------------------------------------------------------------

SOME = ["llama", "mistral", "gptj", "cohere", "gpt_neox", "bloom", "mpt", "falcon-alibi"]
SOME += ["falcon-new", "smollm3", "classroom-alibi", "classroom-t5", "classroom-grouped"]


@pytest.mark.parametrize("policy", [EverySecond(), Halving(), SinkWindow(4, 8)], ids=str)
@pytest.mark.parametrize("name", SOME)
def test_any_policy_is_exact(name, policy):
    ids = text(45)
    with zoo_model(name) as lm:
        expected = naive_logits(lm, ids, policy)
        cache = RankedCache(lm.model, policy)
        assert_same(stepwise(lm, cache, ids), expected)
        assert cache.kept()[0, 0].tolist() == policy.keep(45) == cache.kept_anywhere()
        assert (cache.seen, cache.n_kept) == (45, len(policy.keep(45)))
        # The same in the largest blocks within which nothing is evicted.
        cache = RankedCache(lm.model, policy)
        assert_same(stepwise(lm, cache, ids, cache.parts(45)), expected)


def test_blocks_end_where_a_token_leaves():
    lm = ZOO["llama"]()
    assert RankedCache(lm.model, Halving(8)).parts(18) == [8, 4, 4, 2]
    assert RankedCache(lm.model, SinkWindow(2, 4)).parts(9) == [6, 1, 1, 1]
    cache = RankedCache(lm.model, H2O(3, 4))
    stepwise(lm, cache, text(5), [5])
    assert cache.parts(4) == [2, 1, 1]
    with pytest.raises(ValueError, match="some leave the cache, which holds 7; feed 2 tokens now"):
        stepwise(lm, cache, text(4), [4])
    assert cache.seen == 5


def test_a_policy_that_breaks_its_rules_late_is_stopped(names):
    @register_policy("late")
    @dataclass(frozen=True)
    class Late:
        begin: int
        cache_size = 9

        def keep(self, n):
            return [0, n - 1] if n - 1 > self.begin else [n - 1]

    lm = ZOO["llama"]()
    cache = RankedCache(lm.model, Late(3))
    with pytest.raises(ValueError, match=r"late:3: keep\(5\) holds token 0, which keep\(4\) left"):
        stepwise(lm, cache, text(9))
    assert cache.seen == 4


@pytest.mark.parametrize("policy", [EverySecond(), H2O(3, 4), TOVA(6)], ids=str)
def test_a_pass_that_breaks_off_leaves_the_cache_as_it_was(policy):
    ids = text(30)
    with zoo_model("llama") as lm:
        expected = stepwise(lm, RankedCache(lm.model, policy), ids)
        cache = RankedCache(lm.model, policy)
        rows = [stepwise(lm, cache, ids[:20])]
        before, size = cache.kept(1), cache.n_bytes

        def press(module, args):
            raise KeyboardInterrupt

        hook = lm.model.model.layers[1].mlp.register_forward_pre_hook(press)
        with pytest.raises(KeyboardInterrupt):
            stepwise(lm, cache, ids[5:6])
        hook.remove()
        assert (cache.seen, cache.n_bytes) == (20, size)
        assert torch.equal(cache.kept(1), before)
        rows.append(stepwise(lm, cache, ids[20:]))
        assert_same(torch.cat(rows), expected)


@pytest.mark.parametrize("policy", [EverySecond(), H2O(3, 4), TOVA(6)], ids=str)
def test_batches_beams_and_saved_states(policy):
    ids = text(30, rows=2)
    with zoo_model("llama") as lm:
        expected = torch.stack([stepwise(lm, RankedCache(lm.model, policy), row) for row in ids])
        cache = RankedCache(lm.model, policy)
        assert_same(stepwise(lm, cache, ids[:, :20]), expected[:, :20])
        again = RankedCache(lm.model, policy)
        again.restore(*cache.state())
        cache.reorder_cache(torch.tensor([1, 0]))
        assert_same(stepwise(lm, cache, ids[:, 20:].flip(0)), expected[:, 20:].flip(0))
        assert_same(stepwise(lm, again, ids[:, 20:]), expected[:, 20:])
        # One row that is copied, and one that is dropped again.
        cache.reset()
        assert (cache.seen, cache.n_bytes, cache.kept_anywhere()) == (0, 0, [])
        stepwise(lm, cache, ids[1:, :20])
        cache.batch_repeat_interleave(2)
        assert_same(stepwise(lm, cache, ids[[1, 1], 20:25])[1], expected[1, 20:25])
        cache.batch_select_indices(torch.tensor([1]))
        assert_same(stepwise(lm, cache, ids[1:, 25:])[0], expected[1, 25:])


def test_float32_generate_and_bytes():
    lm, policy = zoo_float32("llama"), EverySecond()
    cache = RankedCache(lm.model, policy)
    prompt = text(6)[None]
    mask = torch.ones_like(prompt)
    out = lm.model.generate(
        prompt, attention_mask=mask, past_key_values=cache, max_new_tokens=20, do_sample=False
    )[0]
    with zoo_model("llama") as exact:
        logits = stepwise(exact, RankedCache(exact.model, policy), out)
    assert torch.equal(logits[5:-1].argmax(-1), out[6:])
    before = cache.n_bytes
    stepwise(lm, cache, text(30))
    assert cache.n_bytes == before
    # 2 layers x (2 kv heads x 10 keys and values of 16 floats; a position and a sum for each key).
    assert before == 2 * (2 * 10 * 2 * 16 * 4 + 10 * (8 + 4))
    with pytest.raises(ValueError, match="cannot go back"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="takes no padding"):
        lm.model(
            prompt, attention_mask=mask.index_fill(1, torch.tensor(0), 0), past_key_values=cache
        )


@pytest.mark.parametrize(
    ("name", "policy", "message"),
    [
        ("llama", Dense(), "Dense has no cache of a fixed size"),
        ("llama", Recompute(8), "recompute 8 has no cache"),
        ("llama", SinkWindow(2, 4, "text"), "within the cache, not in the text as 2\\+4@text does"),
        ("gpt2", EverySecond(), "gpt2 has learned positions"),
        ("gemma2", EverySecond(), "some layers of gemma2 slide by their own design"),
        ("gptj", Halving(300), "gptj tells 256 positions apart, halving:300 needs 300"),
    ],
)
def test_what_a_ranked_cache_cannot_do_is_refused(name, policy, message):
    with pytest.raises(ValueError, match=message):
        RankedCache(ZOO[name]().model, policy)


def test_a_cache_knows_its_model():
    lm, other = ZOO["llama"](), ZOO["llama"]()
    cache = RankedCache(lm.model, EverySecond())
    with pytest.raises(ValueError, match="belongs to another model"):
        stepwise(other, cache, text(3))
    with pytest.raises(ValueError, match="is empty"):
        cache.kept()
    assert repr(cache) == "RankedCache(EverySecond(n_sink=2, n_recent=5, n_thin=3), seen=0)"


# By attention -------------------------------------------------------------------------------------


def test_h2o_drops_the_lightest_token_that_is_not_recent():
    received = torch.tensor([[[3.0, 0.2, 0.5, 0.1, 0.1], [0.1, 0.9, 0.8, 0.0, 0.1]]])
    unused = torch.full_like(received, torch.nan)
    assert H2O(n_heavy=3, n_recent=2).drop(received, unused).tolist() == [[3, 3]]
    assert H2O(n_heavy=2, n_recent=3).drop(received, unused).tolist() == [[1, 0]]
    assert H2O(n_heavy=0, n_recent=5).drop(received, unused).tolist() == [[0, 0]]


def test_tova_drops_what_the_newest_query_attends_to_least_in_the_mean():
    latest = torch.tensor([[[0.1, 0.3, 0.6], [0.5, 0.2, 0.3]], [[0.2, 0.7, 0.1], [0.2, 0.7, 0.1]]])
    unused = torch.full_like(latest, torch.nan)
    assert TOVA(3).drop(unused, latest).tolist() == [[1, 1], [2, 2]]


@pytest.mark.parametrize("name", ["llama", "classroom-none"])
def test_with_even_attention_first_tokens_are_the_heavy_hitters(name):
    """Every query gives as much to each key, so that the oldest have received most."""
    with zoo_model(name) as lm:
        for module in lm.model.modules():
            if hasattr(module, "q_proj"):
                torch.nn.init.zeros_(module.q_proj.weight)
        cache = RankedCache(lm.model, H2O(3, 5))
        assert_same(stepwise(lm, cache, text(40)), naive_logits(lm, text(40), SinkWindow(3, 5)))
        assert cache.kept(1)[0].tolist() == [SinkWindow(3, 5).keep(40)] * cache.kept(1).shape[1]
        # By hand: 1 + 1/2 + 1/3 + 1/4 + 1/8 ... for the first token, and per query head.
        groups = lm.model.config.num_attention_heads // cache.kept().shape[1]
        sums = sum(1 / min(n, 8) for n in range(1, 41)), 1 / 8
        received = cache.layers[0].received[0, 0] / groups
        assert received[[0, -1]].tolist() == pytest.approx(sums)


@dataclass
class Token:
    """A token that a head of the reference holds."""

    position: int
    key: torch.Tensor
    value: torch.Tensor
    received: list[float] = field(default_factory=list)


class ByHand(Cache):
    """Each layer and head has a list of tokens, and nothing else."""

    def __init__(self, model) -> None:
        self.n = 0
        n_layers = model.config.num_hidden_layers
        super().__init__(layers=[ByHandLayer(self, model, index) for index in range(n_layers)])

    @property
    def kept(self) -> list[int]:
        """What a pass sees, as ``NaiveLayer`` asks."""
        return list(range(self.position + 1))

    position = 0


class ByHandLayer(NaiveLayer):
    """One layer of it; keys are kept without rotation."""

    heads: list[list[Token]]

    def update(self, key_states, value_states, *args, **kwargs):
        """Append one token to each head's list, and return all."""
        n_heads = key_states.shape[1]
        if self.cache.n == 1:
            self.heads = [[] for _ in range(n_heads)]
        raw = self.rotate(key_states, [-self.cache.position])
        for head, held in enumerate(self.heads):
            held.append(Token(self.cache.n - 1, raw[0, head, 0], value_states[0, head, 0]))
        keys = torch.stack([torch.stack([token.key for token in held]) for held in self.heads])
        values = torch.stack([torch.stack([token.value for token in held]) for held in self.heads])
        return self.rotate(keys[None], list(range(keys.shape[1]))), values[None]


def by_hand(lm, ids: torch.Tensor, policy) -> tuple[torch.Tensor, list]:
    """Return the logits after every token, and what each layer and head held at the end."""
    cache, rows = ByHand(lm.model), []
    with untouched(lm.model, "eager"):
        for token in ids:
            for layer in cache.layers if cache.n >= policy.cache_size else ():
                drop_by_hand(policy, layer.heads)
            cache.n += 1
            cache.position = min(cache.n, policy.cache_size) - 1
            options = (
                {} if "bloom" in lm.name else {"position_ids": torch.tensor([[cache.position]])}
            )
            out = lm.model(
                token[None, None], past_key_values=cache, output_attentions=True, **options
            )
            rows.append(out.logits[0, -1])
            for layer, attention in zip(cache.layers, out.attentions, strict=True):
                groups = attention.shape[1] // len(layer.heads)
                for head, held in enumerate(layer.heads):
                    for rank, one in enumerate(held):
                        mine = range(head * groups, (head + 1) * groups)
                        one.received.append(sum(float(attention[0, q, 0, rank]) for q in mine))
    held = [[[one.position for one in head] for head in layer.heads] for layer in cache.layers]
    return torch.stack(rows), held


def drop_by_hand(policy, heads: list[list[Token]]) -> None:
    for held in heads:
        assert len(held) == policy.cache_size
    if isinstance(policy, H2O):
        for held in heads:
            # With the next token, which is one of them, n_recent tokens are recent.
            old = [one for one in held if one.position < held[-1].position + 2 - policy.n_recent]
            held.remove(min(old, key=lambda one: sum(one.received)))
    else:
        means = [sum(one.received[-1] for one in rank) for rank in zip(*heads, strict=True)]
        least = means.index(min(means))
        for held in heads:
            del held[least]


@pytest.mark.parametrize("policy", [H2O(3, 4), H2O(5, 2), TOVA(7)], ids=str)
@pytest.mark.parametrize("name", ["llama", "gptj", "bloom"])
def test_policies_by_attention_agree_with_lists_of_tokens(name, policy):
    ids = text(40)
    with zoo_model(name) as lm:
        expected, held = by_hand(lm, ids, policy)
        cache = RankedCache(lm.model, policy)
        assert_same(stepwise(lm, cache, ids, cache.parts(40)), expected)
        assert [cache.kept(layer)[0].tolist() for layer in range(2)] == held
        different = {tuple(head) for layer in held for head in layer}
        assert len(different) > 1
        assert cache.kept_anywhere() == sorted(set().union(*different))
        assert_same(stepwise(lm, RankedCache(lm.model, policy), ids), expected)


def test_a_policy_by_attention_of_ones_own(names):
    """What the newest query attends to most leaves: a head per decision, and no keep."""

    @register_policy("contrary")
    @dataclass(frozen=True)
    class Contrary:
        cache_size: int = 6
        by_attention = True

        def drop(self, received, latest):
            return latest.argmax(-1)

    lm = zoo_float32("classroom-rope")
    cache = RankedCache(lm.model, parse_policy("contrary:6"))
    stepwise(lm, cache, text(30))
    assert cache.kept().shape == (1, 3, 6)
    assert (cache.kept()[..., -1] == 29).all()


def test_attention_that_is_not_returned_is_missed():
    lm = zoo_float32("llama")
    assert lm.model.config._attn_implementation == "sdpa"
    cache = RankedCache(lm.model, H2O(2, 2))
    with pytest.raises(ValueError, match="'sdpa' does not return; load the model with"):
        lm.model(text(3)[None], past_key_values=cache)
    assert cache.seen == 0
