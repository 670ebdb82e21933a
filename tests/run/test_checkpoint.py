import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from builders import dense_policy, tiny_policy
from steadyrl.model.loading import Policy
from steadyrl.run import checkpoint
from steadyrl.run.checkpoint import (
    CheckpointError,
    NoRoomError,
    NotFiniteError,
    _save_tokenizer,
    drop_after,
    listed,
    prune,
    restore,
    save,
    verify,
)

IDS = torch.tensor([[5, 9, 20, 11], [7, 7, 3, 30]])


def adamw(policy: Policy) -> torch.optim.Optimizer:
    return torch.optim.AdamW(policy.model.parameters(), lr=1e-2, fused=True)


def train(policy: Policy, optimizer: torch.optim.Optimizer, *, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        policy.model(input_ids=(IDS + step) % 40, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()


def same(one: Policy, two: Policy) -> bool:
    pairs = zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with checkpoints of steps 1 and 2."""
    policy = dense_policy()
    optimizer = adamw(policy)
    for step in (1, 2):
        train(policy, optimizer, first=step, steps=1)
        save(tmp_path / f"step-{step:06d}", policy, optimizer, {"step": step})
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [tiny_policy, dense_policy])
def test_restored_goes_on_bit_for_bit(build, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = build(dtype=dtype)
    optimizer = adamw(policy)
    train(policy, optimizer, first=0, steps=2)
    save(tmp_path / "step-000002", policy, optimizer, {"step": 2, "clock": 1.5})

    other = build(seed=9, dtype=dtype)
    other_optimizer = adamw(other)
    train(other, other_optimizer, first=7, steps=1)  # moments that must go
    assert restore(tmp_path / "step-000002", other, other_optimizer) == {"step": 2, "clock": 1.5}
    assert same(policy, other)
    for each, its in ((policy, optimizer), (other, other_optimizer)):
        train(each, its, first=2, steps=3)
    assert same(policy, other)


def test_moments_matter_to_that_comparison(tmp_path: Path) -> None:
    policy = dense_policy()
    optimizer = adamw(policy)
    train(policy, optimizer, first=0, steps=2)
    save(tmp_path / "step-000002", policy, optimizer, {})
    other = dense_policy(seed=9)
    restore(tmp_path / "step-000002", other, adamw(other))
    train(policy, optimizer, first=2, steps=1)
    train(other, adamw(other), first=2, steps=1)  # an optimizer that starts afresh
    assert not same(policy, other)


def test_moments_that_were_not_there_go(tmp_path: Path) -> None:
    policy = dense_policy()
    save(tmp_path / "step-000000", policy, adamw(policy), {"step": 0})
    optimizer = adamw(policy)
    train(policy, optimizer, first=0, steps=1)
    restore(tmp_path / "step-000000", policy, optimizer)
    assert not optimizer.state
    assert same(policy, dense_policy())


def test_the_model_loads_without_us(tmp_path: Path) -> None:
    policy = tiny_policy()
    save(tmp_path / "step-000001", policy, adamw(policy), {})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "step-000001" / "model", dtype=torch.float32)
    assert torch.equal(model(IDS).logits, policy.model(IDS).logits)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file", ["model/model.safetensors", "model/config.json", "optimizer.safetensors", "state.json"]
)
@pytest.mark.parametrize(
    ("damage", "says"), [(cut, r"has \d+ bytes instead of"), (flip, "was altered"), (Path.unlink, "is missing")]
)
def test_damage_is_named_and_the_earlier_one_offered(damage, says: str, file: str, folder: Path) -> None:
    damage(folder / "step-000002" / file)
    policy = dense_policy(seed=5)
    with pytest.raises(CheckpointError, match=rf"step-000002 is damaged: {file} {says}") as caught:
        restore(folder / "step-000002", policy, adamw(policy))
    assert "step-000001 is intact: resume with --checkpoint step-000001" in str(caught.value)
    assert same(policy, dense_policy(seed=5))  # nothing was loaded


def test_a_damaged_one_is_not_offered(folder: Path) -> None:
    cut(folder / "step-000001" / "state.json")
    cut(folder / "step-000002" / "manifest.json")
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read") as caught:
        verify(folder / "step-000002")
    assert "intact" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"hidden_size": 16}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_another_model_is_refused(wrong: dict, folder: Path) -> None:
    policy = dense_policy(**wrong)
    with pytest.raises(CheckpointError, match="step-000002 belongs to another model"):
        restore(folder / "step-000002", policy, adamw(policy))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond `size` fail, as on a full disk; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_earlier_ones(folder: Path) -> None:
    policy = dense_policy()
    optimizer = adamw(policy)
    train(policy, optimizer, first=0, steps=1)
    sizes = {p.name: p.stat().st_size for p in (folder / "step-000002").rglob("*.safetensors")}
    assert sizes["model.safetensors"] < sizes["optimizer.safetensors"]
    for limit in (1000, sizes["model.safetensors"] - 1, sizes["optimizer.safetensors"] - 1):
        with files_of_at_most(limit), pytest.raises(NoRoomError, match=r"could not save .*step-000003.*are intact"):
            save(folder / "step-000003", policy, optimizer, {})
        assert sorted(p.name for p in folder.iterdir()) == ["step-000001", "step-000002"]
        verify(folder / "step-000002")
    save(folder / "step-000003", policy, optimizer, {})  # room was made
    verify(folder / "step-000003")


def test_a_tokenizer_that_finds_no_room_says_so_by_its_number(tmp_path: Path) -> None:
    policy = tiny_policy()
    _save_tokenizer(policy, tmp_path)
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert max(files, key=files.__getitem__) == "tokenizer.json"  # the one that tokenizers writes
    with files_of_at_most(files["tokenizer.json"] - 1), pytest.raises(OSError, match="os error") as caught:
        _save_tokenizer(policy, tmp_path)
    assert caught.value.errno == errno.EFBIG


def test_what_a_kill_left_is_cleared_away(folder: Path) -> None:
    shutil.copytree(folder / "step-000002", folder / ".step-000003.part")
    assert [p.name for p in listed(folder)] == ["step-000001", "step-000002"]
    policy = dense_policy()
    (folder / ".step-000003.part" / "stale").touch()
    save(folder / "step-000003", policy, adamw(policy), {})
    assert "stale" not in json.loads((folder / "step-000003" / "manifest.json").read_text())
    assert [p.name for p in sorted(folder.iterdir())] == ["step-000001", "step-000002", "step-000003"]


def test_an_existing_checkpoint_is_not_replaced(folder: Path) -> None:
    policy = tiny_policy()
    with pytest.raises(CheckpointError, match="could not save"):
        save(folder / "step-000002", policy, adamw(policy), {"step": 99})
    assert json.loads((folder / "step-000002" / "state.json").read_text()) == {"step": 2}


@pytest.mark.parametrize(("keep", "left"), [(1, ["step-000002"]), (2, ["step-000001", "step-000002"])])
def test_prune_keeps_the_newest(keep: int, left: list[str], folder: Path) -> None:
    prune(folder, keep)
    assert [p.name for p in listed(folder)] == left


def test_drop_after_keeps_the_chosen(folder: Path) -> None:
    drop_after(folder, folder / "step-000001")
    assert [p.name for p in listed(folder)] == ["step-000001"]


def test_a_kill_while_deleting_leaves_no_damaged_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (path / "state.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(folder, keep=1)
    assert [path.name for path in listed(folder)] == ["step-000002"]
    verify(folder / "step-000002")
    monkeypatch.undo()
    prune(folder, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-000002"]


def test_only_folders_named_by_a_step_are_checkpoints_and_they_sort_by_number(folder: Path) -> None:
    for name in ("step-000002-best", "step-000004-old", "step-9", "step-1000000", "step-", "step-x"):
        shutil.copytree(folder / "step-000001", folder / name)
    (folder / "step-000007").write_text("a note, not a folder")
    assert [p.name for p in listed(folder)] == ["step-000001", "step-000002", "step-9", "step-1000000"]
    drop_after(folder, folder / "step-9")
    prune(folder, keep=1)
    assert [p.name for p in listed(folder)] == ["step-9"]
    assert {"step-000002-best", "step-000004-old", "step-", "step-x"} < {p.name for p in folder.iterdir()}


def test_every_flipped_bit_of_a_manifest_is_refused_or_harmless(folder: Path) -> None:
    path = folder / "step-000002" / "manifest.json"
    text = path.read_bytes()
    meaning, refused = json.loads(text), 0
    for bit in range(0, 8 * len(text), 5):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        try:
            verify(folder / "step-000002")
        except CheckpointError as error:
            refused += "step-000001 is intact" in str(error)
        else:
            assert json.loads(bytes(changed)) == meaning
    assert refused > len(text)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"state.json": 3}', '{"state.json": {"bytes": 1}}', "[" * 100_000])
def test_a_manifest_of_another_form_is_refused(text: str, folder: Path) -> None:
    (folder / "step-000002" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json .*step-000001 is intact"):
        verify(folder / "step-000002")


def test_a_manifest_that_leaves_out_a_needed_file_is_refused(folder: Path) -> None:
    path = folder / "step-000002" / "manifest.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "state.json"}))
    with pytest.raises(CheckpointError, match=r"does not list state\.json"):
        verify(folder / "step-000002")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_saved(value: float, folder: Path) -> None:
    policy = dense_policy()
    name, parameter = list(policy.model.named_parameters())[3]
    with torch.no_grad():
        parameter.view(-1)[1] = value
    with pytest.raises(NotFiniteError, match=f"the weights are not finite, {name} first"):
        save(folder / "step-000003", policy, adamw(policy), {})
    assert [p.name for p in sorted(folder.iterdir())] == ["step-000001", "step-000002"]


def test_the_disk_has_every_file_before_the_checkpoint_gets_its_name(folder: Path, monkeypatch) -> None:
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        real_sync(handle)

    def replace(part: Path, final: Path) -> None:
        events.append("renamed")
        real_replace(part, final)

    monkeypatch.setattr(checkpoint.os, "fsync", sync)
    monkeypatch.setattr(checkpoint.os, "replace", replace)
    policy = dense_policy()
    save(folder / "step-000003", policy, adamw(policy), {})
    before = events[: events.index("renamed")]
    part = folder / ".step-000003.part"
    written = {str(part / path.relative_to(folder / "step-000003")) for path in (folder / "step-000003").rglob("*")}
    assert written <= set(before)
    assert events[-1] == str(folder)  # the new name itself
