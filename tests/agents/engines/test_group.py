"""A group of a trainer and workers, beside all others: over gloo, and over NCCL where each has a GPU of its own."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import TCPStore

from agents.engines import group
from agents.engines.group import Group, join


def alike(found, sent):
    assert list(found) == list(sent)
    for name, weight in sent.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight), name


def formed(devices, work=lambda group, rank: group, timeout_s=20):
    """What ``work`` returns in each rank of a group on ``devices``."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    devices = [torch.device(each) for each in devices]

    def member(rank):
        limits = {"device": devices[rank], "timeout_s": timeout_s}
        if rank == 0:
            return work(Group(store, 0, len(devices), address="127.0.0.1", **limits), 0)
        return work(join("127.0.0.1", store.port, rank, len(devices), **limits), rank)

    with ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(member, range(len(devices))))


def test_several_workers_get_the_same():
    sent = [torch.randn(4, 3), torch.randn(5)]

    def work(group, rank):
        return group.send(sent) if rank == 0 else dict(group.receive(["x", "y"], "float32", [[4, 3], [5]]))

    _, *found = formed(["cpu"] * 4, work)
    assert len(found) == 3
    for each in found:
        alike(each, {"x": sent[0], "y": sent[1]})


def test_a_worker_that_stays_away_is_an_error_in_time():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=0.3))
    with pytest.raises(RuntimeError, match="device/1"):
        Group(store, 0, 2, address="127.0.0.1", device=torch.device("cpu"), timeout_s=0.3)


def test_a_broadcast_that_nobody_sends_is_an_error_in_time_and_closes_the_group():
    def work(group, rank):
        if rank == 0:
            return group
        with pytest.raises(RuntimeError, match="Timed out"):
            group.broadcast(torch.zeros(3))
        with pytest.raises(RuntimeError):
            group.broadcast(torch.zeros(3))
        return None

    formed(["cpu"] * 2, work, timeout_s=0.3)


class FakeNCCL:
    """Records how it is made; does nothing."""

    class Options:
        pass

    def __init__(self, store, rank, size, options):
        self.about = (rank, size, options._timeout.total_seconds(), os.environ["TORCH_NCCL_BLOCKING_WAIT"])

    def broadcast(self, tensor, root):
        return SimpleNamespace(wait=lambda: None)


@pytest.mark.parametrize(
    ("devices", "on_gpus"),
    [(["meta:0", "meta:1"], True), (["meta:0", "meta:0"], False), (["meta:0", "cpu"], False), (["cpu", "cpu"], False)],
)
def test_nccl_carries_it_where_each_rank_has_a_gpu_of_its_own(monkeypatch, devices, on_gpus):
    monkeypatch.setattr(group, "_unique_name", str)
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", FakeNCCL, raising=False)
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)
    members = formed(devices)
    for rank, each in enumerate(members):
        assert each.device == torch.device(devices[rank] if on_gpus else "cpu")
        assert isinstance(each._group, FakeNCCL) == on_gpus
        assert not on_gpus or each._group.about == (rank, 2, 20.0, "1")
    assert "TORCH_NCCL_BLOCKING_WAIT" not in os.environ


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; between two GPUs where there are two")
def test_it_arrives_over_nccl():
    devices = [f"cuda:{rank}" for rank in range(min(2, torch.cuda.device_count()))]
    sent = {"x": torch.randn(300, 200), "y": torch.randn(7)}

    def work(group, rank):
        assert group.device == torch.device(devices[rank])
        if rank == 0:
            group.send([each.to(group.device) for each in sent.values()])
            return dict(sent)
        return {name: each.cpu() for name, each in group.receive(["x", "y"], "float32", [[300, 200], [7]])}

    for found in formed(devices, work, timeout_s=60):
        alike(found, sent)
