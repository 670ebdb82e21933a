import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyrl.algo import buckets, ledger

# q = (½, ¼, ¼), p = (¼, ¼, ½). Four tokens as often as q has them: a a b c. So a mean over them is an expectation.
Q = torch.tensor([1 / 2, 1 / 2, 1 / 4, 1 / 4]).log()
P = torch.tensor([1 / 4, 1 / 4, 1 / 4, 1 / 2]).log()
KL = math.log(2) / 4  # ½·ln 2 + ¼·0 − ¼·ln 2
RESPONSE = torch.tensor([0, 0, 1, 1])


def described(log_ratio: torch.Tensor, response: torch.Tensor) -> dict[str, float]:
    """The numbers of one factor over all tokens."""
    (row,) = ledger.table({"product": log_ratio}, response)
    return {name: float(value) for name, value in row.items() if name not in ("factor", "split", "bucket", "tokens")}


def test_k1_and_k3_are_the_divergence_under_q() -> None:
    assert described(P - Q, RESPONSE)["k1"] == pytest.approx(KL)
    assert ledger.k3(P - Q).mean().item() == pytest.approx(KL)


def test_k3_is_never_negative_and_exact_near_zero() -> None:
    assert (ledger.k3(torch.linspace(-4, 4, 41)) >= 0).all()
    assert ledger.k3(torch.tensor(1e-3, dtype=torch.float64)).item() == pytest.approx(5e-7, rel=1e-3)  # x²/2
    assert described(torch.tensor([2.0]), torch.tensor([0]))["k1"] == -2.0


def test_chi2_is_the_mean_square_of_the_ratio_less_one() -> None:
    chi2 = described(P - Q, RESPONSE)["chi2"]
    assert chi2 == pytest.approx((1 / 4 + 1 / 4 + 0 + 1) / 4)  # ρ = ½, ½, 1, 2
    assert chi2 == pytest.approx((P - Q).exp().square().mean().item() - 1)  # as E_q[ρ] = 1


def test_effective_sample_size() -> None:
    assert described(torch.full((7,), -3.0), torch.arange(7))["ess"] == 1.0
    assert described(torch.tensor([50.0, 0, 0, 0]), RESPONSE)["ess"] == pytest.approx(1 / 4)
    # weights 1, 1, 2: (1+1+2)² / (3 · (1+1+4)) = 16/18
    weights = torch.tensor([1.0, 1.0, 2.0]).log()
    for shift in (0.0, 1000.0, -1000.0):  # nothing overflows
        assert described(weights + shift, torch.arange(3))["ess"] == pytest.approx(16 / 18, rel=1e-3)


def test_effective_sample_size_of_whole_responses() -> None:
    # products 2·3, ½·2, 1 and 4·1·1: (6+1+1+4)² / (4 · (36+1+1+16)) = 144/216
    log_ratio = torch.tensor([2.0, 3.0, 0.5, 2.0, 1.0, 4.0, 1.0, 1.0]).log()
    response = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])
    assert described(log_ratio, response)["ess_sequences"] == pytest.approx(144 / 216)
    # single tokens: as over tokens
    alone = described(log_ratio, torch.arange(8))
    assert alone["ess_sequences"] == pytest.approx(alone["ess"])
    for size in (400.0, -400.0):  # e^±1200 for one of two: nothing overflows
        assert described(torch.tensor([size, size, size, 0.0]), torch.tensor([0, 0, 0, 1]))[
            "ess_sequences"
        ] == pytest.approx(1 / 2)
    # one ratio in 20 responses of 50 tokens at e^±0.3 each: 0.92 of the tokens, but few of the responses
    steps = 0.3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    said = described(steps, torch.arange(20).repeat_interleave(50))
    assert said["ess"] > 0.88
    assert said["ess_sequences"] < 0.5


def test_effective_sequences_of_a_bucket_count_its_tokens_only() -> None:
    # responses of log 2, log 3 | 0, log 5; by hand in the buckets 0 (first tokens) and 1 (the others)
    log_ratio = torch.tensor([2.0, 3.0, 1.0, 5.0]).log()
    split = ledger.Split("own", ("first", "rest"), torch.tensor([0, 1, 0, 1]))
    rows = ledger.table({"product": log_ratio}, torch.tensor([0, 0, 1, 1]), [split])
    found = {row["bucket"]: row["ess_sequences"] for row in rows}
    assert found["all"] == pytest.approx(11**2 / (2 * (36 + 25)))
    assert found["first"] == pytest.approx(9 / (2 * 5))
    assert found["rest"] == pytest.approx(64 / (2 * 34))


def test_the_effective_sample_size_of_equal_weights_is_never_above_one() -> None:
    """In floats (Σρ)² / (n Σρ²) may end a little above 1: 200 buckets of equal weights, each with its own."""
    lag = torch.arange(200).repeat_interleave(torch.arange(1, 201))
    own = ledger.Split("own", tuple(map(str, range(200))), lag)
    rows = ledger.table({"product": -lag / 100}, torch.arange(len(lag)), [own])
    found = [float(row["ess"]) for row in rows if row["split"] == "own"]
    assert found == pytest.approx([1.0] * 200)
    assert max(found) == 1.0


def margin_of(values: torch.Tensor, response: torch.Tensor) -> float:
    return described(-values, response)["k1_margin"]


def test_the_margin_by_hand() -> None:
    # mean 2; the responses' sums of deviations are −3 and 3: 1.96 · sqrt(2/1 · 18) / 4
    values = torch.tensor([0.0, 1.0, 3.0, 4.0])
    assert margin_of(values, RESPONSE) == pytest.approx(1.96 * 6 / 4)
    # within its response each deviation has its opposite: the responses agree on the mean
    assert margin_of(values[[0, 3, 1, 2]], RESPONSE) == pytest.approx(0.0, abs=1e-6)
    assert not math.isfinite(margin_of(values, torch.zeros(4, dtype=torch.long)))


def test_the_margin_of_single_tokens_is_the_textbook_one() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert margin_of(values, torch.arange(50)) == pytest.approx(1.96 * values.std().item() / 50**0.5)


def test_about_95_of_100_intervals_hold_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        shared = torch.randn(30, generator=generator).repeat_interleave(8)  # what the tokens of a response share
        values = shared + torch.randn(240, generator=generator)
        response = torch.arange(30).repeat_interleave(8)
        held += int(values.mean().abs() < margin_of(values, response))
    assert 0.91 < held / 400 < 0.98  # tokens taken as independent would give about .75


def test_a_factor_by_hand() -> None:
    # log ratios −ln 2, −ln 2, 0, ln 2; ratios ½, ½, 1, 2
    log2 = math.log(2)
    assert described(P - Q, RESPONSE) == {
        "k1": pytest.approx(KL),
        # deviations of −log ρ: ¾ln2, ¾ln2 | −¼ln2, −5/4 ln2: sums ±3/2 ln2
        "k1_margin": pytest.approx(1.96 * math.sqrt(2 * 2 * (1.5 * log2) ** 2) / 4),
        "k3": pytest.approx(KL),
        # k3 of the tokens: ln2 − ½ twice, 0, 1 − ln2; the sum of the first two less half the total, ±
        "k3_margin": pytest.approx(1.96 * math.sqrt(2 * 2 * ((2 * log2 - 1) - log2 / 2) ** 2) / 4, rel=1e-4),
        "chi2": pytest.approx(3 / 8),
        "mean": pytest.approx(1.0),
        "max": pytest.approx(2.0),
        # products ¼ and 2: (9/4)² / (2 · 65/16)
        "ess_sequences": pytest.approx(81 / 130),
        "ess": pytest.approx(16 / (4 * 5.5)),  # (Σw)² / (n Σw²) = 4² / (4 · (¼ + ¼ + 1 + 4))
        "abs_mean": pytest.approx(3 / 4 * log2),
        "abs_max": pytest.approx(log2),
        "p01": pytest.approx(0.5),
        "p50": pytest.approx(1.0),  # the third of four
        "p99": pytest.approx(2.0),
        "tail_2": 0.0,  # 2 itself is inside
        "tail_5": 0.0,
    }


def test_quantiles_and_tails() -> None:
    log_ratio = torch.linspace(-5.0, 5.0, 1001)[torch.randperm(1001, generator=torch.Generator().manual_seed(0))]
    said = described(log_ratio, torch.arange(1001))
    assert [math.log(said[name]) for name in ("p01", "p50", "p99")] == pytest.approx([-4.9, 0.0, 4.9], abs=1e-5)
    assert said["tail_2"] == pytest.approx((1001 - 139) / 1001)  # |x| ≤ .693: 139 of them
    assert said["tail_5"] == pytest.approx((1001 - 321) / 1001)  # |x| ≤ 1.609
    assert said["max"] == pytest.approx(math.exp(5))
    assert described(torch.tensor([5.0, 1.0]).log(), torch.arange(2))["tail_5"] == 0.0  # 5 itself is inside


def test_the_largest_log_is_that_of_a_small_ratio_too() -> None:
    assert described(torch.tensor([-3.0, 1.0]), torch.arange(2))["abs_max"] == 3.0
    assert described(torch.tensor([-1.0, 3.0]), torch.arange(2))["abs_max"] == 3.0


def test_the_metrics_of_a_step_are_the_rows_of_all_tokens() -> None:
    factors = {"mismatch": P - Q, "staleness": Q - P, "product": P - P}
    said = ledger.summary(ledger.table(factors, RESPONSE, [ledger.by_position(RESPONSE)]))
    for factor, prefix in (("mismatch", "mismatch"), ("staleness", "staleness"), ("product", "weight")):
        values = described(factors[factor], RESPONSE)
        found = {n.removeprefix(f"{prefix}/"): v for n, v in said.items() if n.startswith(f"{prefix}/")}
        assert {"k1", "k3", "k3_margin", "mean", "max", "ess", "chi2", "p99", "tail_5"} <= found.keys()
        assert all(value == values[name] for name, value in found.items())
        assert ({"k1_margin", "abs_mean", "abs_max"} <= found.keys()) == (factor == "mismatch")


def test_the_metrics_of_a_step_are_of_all_tokens_however_they_are_split() -> None:
    # ratios ½, ½, 1, 2: their mean is 1; 3/2 and 1/2 by the sign of Â; 1/2, 3/4 and 2 by age
    splits = [ledger.by_advantage(torch.tensor([1.0, 1.0, -1.0, -1.0])), ledger.by_version(torch.tensor([0, 1, 1, 8]))]
    rows = ledger.table({"product": P - Q}, RESPONSE, splits)
    assert [row["mean"] for row in rows] == pytest.approx([1.0, 1.5, 0.5, 0.5, 0.75, 2.0])
    said = ledger.summary(rows)
    by_hand = {"k1": KL, "chi2": 3 / 8, "mean": 1.0, "max": 2.0, "ess": 8 / 11, "p01": 0.5, "p50": 1.0, "p99": 2.0}
    assert {name: said[f"weight/{name}"] for name in by_hand} == pytest.approx(by_hand)


THETA, OLD, MU = (torch.tensor(p).log() for p in ([0.6, 0.2, 0.3, 0.4], [0.3, 0.2, 0.6, 0.4], [0.2, 0.4, 0.3, 0.4]))


def test_the_factors_multiply_to_the_product() -> None:
    found = ledger.factors(THETA, MU, OLD)
    assert found.mismatch is not None
    assert found.staleness is not None
    torch.testing.assert_close(found.mismatch.exp(), torch.tensor([1.5, 0.5, 2.0, 1.0]))
    torch.testing.assert_close(found.staleness.exp(), torch.tensor([2.0, 1.0, 0.5, 1.0]))
    torch.testing.assert_close(found.product, found.mismatch + found.staleness)
    assert found.note is None


def test_without_a_pass_at_theta_old_only_the_product_is_said() -> None:
    found = ledger.factors(THETA, MU, None)
    rows = ledger.table(found.known, RESPONSE, [ledger.by_position(RESPONSE)])
    assert {row["factor"] for row in rows} == {"product"}
    assert rows[0]["mean"] == pytest.approx((3 + 0.5 + 1 + 1) / 4)
    assert found.note is not None
    assert "cannot be separated" in found.note


def test_the_table_has_a_row_for_each_factor_and_bucket_that_is_not_empty() -> None:
    advantages = torch.tensor([1.0, 1.0, -2.0, -2.0])
    measured = ledger.factors(THETA, MU, OLD)
    rows = ledger.table(measured.known, RESPONSE, [ledger.by_advantage(advantages)])
    heads = [(row["factor"], row["split"], row["bucket"], row["tokens"]) for row in rows]
    factors = ("product", "mismatch", "staleness")
    buckets = (("all", "all", 4), ("advantage", "negative", 2), ("advantage", "positive", 2))
    assert heads == [(f, *b) for b in buckets for f in factors]
    apart = next(r for r in rows if (r["factor"], r["bucket"]) == ("mismatch", "negative"))
    assert apart["mean"] == pytest.approx(1.5)  # 2 and 1


def test_buckets() -> None:
    response = torch.tensor([0] * 20 + [1] * 70)
    positions = ledger.by_position(response)
    named = [positions.buckets[i] for i in positions.bucket.tolist()]
    assert named == ["0"] * 16 + ["16"] * 4 + ["0"] * 16 + ["16"] * 48 + ["64"] * 6
    long = ledger.by_position(torch.zeros(20000, dtype=torch.long))
    assert long.bucket.bincount().tolist() == [16, 48, 192, 768, 3072, 12288, 3616]  # up to 16 64 256 1024 4096 16384
    versions = ledger.by_version(torch.tensor([0, 1, 2, 3, 4, 7, 8, 100]))
    assert [versions.buckets[i] for i in versions.bucket.tolist()] == ["0", "1", "2", "2", "4", "4", "8", "8"]
    differs = torch.tensor([[False, False], [False, True], [True, True], [True, True]])
    routes = ledger.by_routes(differs, torch.tensor([True, True, True, False]))
    assert [routes.buckets[i] for i in routes.bucket.tolist()] == ["agreed", "differed", "differed", "unrouted"]
    signs = ledger.by_advantage(torch.tensor([-0.1, 0.0, 3.0]))
    assert [signs.buckets[i] for i in signs.bucket.tolist()] == ["negative", "zero", "positive"]
    assert [split.name for split in (positions, versions, routes, signs)] == [
        "position",
        "version",
        "routes",
        "advantage",
    ]


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=20), data=st.data())
def test_the_buckets_of_a_split_add_up_to_the_whole(values: list[float], data) -> None:
    lag = torch.tensor(data.draw(st.lists(st.integers(0, 20), min_size=len(values), max_size=len(values))))
    response = torch.arange(len(values))
    rows = ledger.table({"product": torch.tensor(values)}, response, [ledger.by_version(lag)])
    whole, parts = rows[0], rows[1:]
    for name in ("k1", "k3", "chi2", "mean", "abs_mean", "tail_2"):
        total = sum(float(row[name]) * int(row["tokens"]) for row in parts)
        assert total / len(values) == pytest.approx(whole[name], rel=1e-4, abs=1e-5)
    assert max(float(row["max"]) for row in parts) == whole["max"]


def plain(log_ratio: torch.Tensor, response: torch.Tensor) -> dict[str, float]:
    """A factor in numbers, one formula after the other."""
    wide, n = log_ratio.double(), len(log_ratio)
    ratio, away, ranked = wide.exp(), wide.abs(), log_ratio.sort().values.double()
    of_tokens = {"k1": -wide, "k3": ratio - 1 - wide}
    said = {name: values.mean().item() for name, values in of_tokens.items()}
    for name, values in of_tokens.items():
        sums = [(values[response == i] - said[name]).sum().item() for i in response.unique()]
        m = len(sums)
        said[f"{name}_margin"] = 1.96 * math.sqrt(m / (m - 1) * sum(x * x for x in sums)) / n if m > 1 else math.nan
    said |= {"chi2": (ratio - 1).square().mean().item(), "mean": ratio.mean().item(), "max": ratio.max().item()}
    said |= {"ess": (ratio.sum() ** 2 / (n * ratio.square().sum())).item()}
    said |= {"abs_mean": away.mean().item(), "abs_max": away.max().item()}
    said |= {f"p{100 * q:02.0f}": ranked[round(q * (n - 1))].exp().item() for q in (0.01, 0.5, 0.99)}
    return said | {f"tail_{k}": (away > math.log(k)).double().mean().item() for k in (2, 5)}


def test_all_buckets_at_once_are_the_buckets_one_by_one() -> None:
    """Responses of 1 to 40 tokens, three factors, four splits whose buckets cut across responses."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 41, (60,), generator=generator)
    response = torch.arange(60).repeat_interleave(lengths) * 5 + 2  # numbers with gaps, as of other micro-batches
    n = len(response)
    factors = {name: scale * torch.randn(n, generator=generator) for name, scale in (("a", 0.1), ("b", 0.8), ("c", 2))}
    advantages = torch.randint(-1, 2, (60,), generator=generator).repeat_interleave(lengths).float()
    differs = torch.rand(n, 3, generator=generator) < 0.1
    splits = [
        ledger.by_position(response),
        ledger.by_advantage(advantages),
        ledger.by_version(torch.randint(0, 9, (n,), generator=generator)),
        ledger.by_routes(differs, torch.rand(n, generator=generator) < 0.9),
    ]
    rows = ledger.table(factors, response, splits)
    seen = [(row["split"], row["bucket"]) for row in rows]
    assert len(set(seen)) == 1 + 2 + 3 + 5 + 3
    everything = ledger.Split("all", ("all",), torch.zeros(n, dtype=torch.long))
    for row in rows:
        split = next(s for s in (everything, *splits) if s.name == row["split"])
        inside = split.bucket == split.buckets.index(str(row["bucket"]))
        assert row["tokens"] == int(inside.sum())
        for name, value in plain(factors[str(row["factor"])][inside], response[inside]).items():
            assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), (row["split"], name)


def test_a_bucket_of_one_token_holds_the_numbers_of_that_token() -> None:
    splits = [ledger.by_advantage(torch.tensor([1.0, 1.0, -1.0, 0.0]))]  # ratios ½, ½ | 1 | 2
    rows = {row["bucket"]: row for row in ledger.table({"product": P - Q}, RESPONSE, splits)}
    for bucket, ratio in (("negative", 1.0), ("zero", 2.0)):
        assert rows[bucket]["tokens"] == 1
        assert rows[bucket]["ess"] == 1.0
        for name in ("mean", "max", "p01", "p50", "p99"):
            assert rows[bucket][name] == pytest.approx(ratio), (bucket, name)
        assert rows[bucket]["abs_max"] == pytest.approx(math.log(ratio))


def test_a_broken_token_is_seen_in_its_own_buckets() -> None:
    log_ratio = torch.tensor([0.1, 0.2, math.nan, 0.3])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    rows = ledger.table({"product": log_ratio}, RESPONSE, [ledger.by_advantage(advantages)])
    for name in ("k1", "k3", "mean", "max", "ess", "abs_max"):
        broken = {row["bucket"]: math.isnan(float(row[name])) for row in rows}
        assert broken == {"all": True, "negative": True, "positive": False}, name


def test_expert_sets_differ_by_layer_and_their_order_means_nothing() -> None:
    # 3 positions, 2 layers, 2 slots
    mine = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [2, 3]], [[0, 1], [2, 3]]], dtype=torch.uint8)
    theirs = torch.tensor([[[1, 0], [3, 2]], [[1, 0], [2, 7]], [[0, 7], [7, 3]]], dtype=torch.uint8)
    assert ledger.routes_differ(mine, theirs).tolist() == [[False, False], [False, True], [True, True]]


def test_many_experts() -> None:
    mine = torch.tensor([[[300, 2]]], dtype=torch.uint16)
    assert not ledger.routes_differ(mine, torch.tensor([[[2, 300]]], dtype=torch.uint16)).any()
    assert ledger.routes_differ(mine, torch.tensor([[[2, 44]]], dtype=torch.uint16)).all()  # 300 − 256


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_table_is_the_same_bits_however_many_tokens_are_added_up_at_a_time(monkeypatch, chunk: int) -> None:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 20, (40,), generator=generator)
    response = torch.arange(40).repeat_interleave(lengths)
    n = len(response)
    factors = {"product": torch.randn(n, generator=generator), "mismatch": 0.01 * torch.randn(n, generator=generator)}
    splits = [ledger.by_position(response), ledger.by_version(torch.randint(0, 9, (n,), generator=generator))]
    whole = ledger.table(factors, response, splits)
    monkeypatch.setattr(buckets, "CHUNK", chunk)
    assert ledger.table(factors, response, splits) == whole


def test_a_chunk_is_of_whole_responses(monkeypatch) -> None:
    monkeypatch.setattr(buckets, "CHUNK", 4)
    response = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 4])  # of 2, 2, 1, 6 and 1
    assert [(c.start, c.stop) for c in buckets._chunks(response)] == [(0, 4), (4, 5), (5, 11), (11, 12)]
