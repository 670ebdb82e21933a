from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import tiny_policy
from steadyrl.model.route_record import RouteRecord, RouteRun
from steadyrl.model.routing import RoutingError, record

RUNS = (
    RouteRun(start=0, policy_version=7, source="cached_prefix"),
    RouteRun(start=2, policy_version=8, source="prefill"),
    RouteRun(start=3, policy_version=8, source="decode"),
)


def routes(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.arange(5 * 2 * 2).view(5, 2, 2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_a_record_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    given = routes(dtype)
    given[1] = torch.iinfo(dtype).max
    RouteRecord(routes=given, runs=RUNS).save(tmp_path / "routes.safetensors")
    back = RouteRecord.load(tmp_path / "routes.safetensors")
    assert torch.equal(back.routes, given)
    assert back.routes.dtype == dtype
    assert back.runs == RUNS


def test_bytes_per_token_count_routes_and_origins() -> None:
    # 2 layers of 2 slots take 4 bytes a row; 3 runs of 8 + 8 + 1 bytes are shared by 5 rows
    assert RouteRecord(routes=routes(), runs=RUNS).bytes_per_token == 4 + 51 / 5
    assert RouteRecord(routes=routes(torch.uint16), runs=RUNS).bytes_per_token == 8 + 51 / 5
    assert RouteRecord(routes=routes()[:0], runs=()).bytes_per_token == 0


def test_recorded_routes_make_a_record(tmp_path: Path) -> None:
    model = tiny_policy().model
    with torch.no_grad(), record(model) as recorder:
        model(input_ids=torch.tensor([[3, 9, 20]]), use_cache=False)
    made = RouteRecord(routes=recorder.routes(), runs=(RouteRun(start=0, policy_version=0, source="prefill"),))
    made.save(tmp_path / "r")
    assert torch.equal(RouteRecord.load(tmp_path / "r").routes, recorder.routes())


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ((1, 3), r"start at \[1, 3\]; for 5 rows they must begin at 0"),
        ((0, 3, 2), "ascend"),
        ((0, 3, 3), "ascend"),
        ((0, 5), "end below 5"),
        ((), "begin at 0"),
    ],
)
def test_runs_that_do_not_cover_the_rows_are_refused(starts: tuple[int, ...], message: str) -> None:
    with pytest.raises(RoutingError, match=message):
        RouteRecord(
            routes=routes(), runs=tuple(RouteRun(start=start, policy_version=0, source="decode") for start in starts)
        )


def test_a_negative_version_is_refused() -> None:
    with pytest.raises(RoutingError, match="policy_version=-1"):
        RouteRecord(routes=routes(), runs=(RouteRun(start=0, policy_version=-1, source="decode"),))


def test_what_is_no_record_is_refused_by_path(tmp_path: Path) -> None:
    path = tmp_path / "routes.safetensors"
    with pytest.raises(RoutingError, match=r"routes\.safetensors is no route record"):
        RouteRecord.load(path)
    path.write_bytes(b"not a tensor file")
    with pytest.raises(RoutingError, match="is no route record"):
        RouteRecord.load(path)
    save_file({"routes": routes()}, path)
    with pytest.raises(RoutingError, match=r"it holds \['routes'\]"):
        RouteRecord.load(path)
    RouteRecord(routes=routes(), runs=RUNS).save(path)
    save_file({**load_file(path), "source": torch.tensor([9, 0, 0], dtype=torch.uint8)}, path)
    with pytest.raises(RoutingError, match=r"its runs are \[\[0, 2, 3\], \[7, 8, 8\], \[9, 0, 0\]\]"):
        RouteRecord.load(path)


def test_routes_of_another_type_are_refused() -> None:
    with pytest.raises(RoutingError, match=r"torch\.int64 \(5, 2, 2\); they must be uint8 or uint16"):
        _made(routes().long())


def _made(given: torch.Tensor) -> RouteRecord:
    """Past the checks of shapes that only the tests have."""
    made = object.__new__(RouteRecord)
    object.__setattr__(made, "routes", given)
    object.__setattr__(made, "runs", RUNS)
    made.__post_init__()
    return made
