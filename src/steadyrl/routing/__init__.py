"""Routing Replay for mixture-of-experts models of transformers: record routes, check them, and replay them."""

from steadyrl.routing.blocks import is_experts, is_moe, moe_blocks, route_dtype, slots_of
from steadyrl.routing.check import check_routes
from steadyrl.routing.guard import RoutingError
from steadyrl.routing.hooks import Recorder, record, replay
from steadyrl.routing.probe import check_recording, check_replay

__all__ = [
    "Recorder",
    "RoutingError",
    "check_recording",
    "check_replay",
    "check_routes",
    "is_experts",
    "is_moe",
    "moe_blocks",
    "record",
    "replay",
    "route_dtype",
    "slots_of",
]
