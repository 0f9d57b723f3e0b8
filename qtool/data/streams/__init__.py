"""Streams of calls whose states are fed back, and states that were recorded."""

from qtool.data.streams.loop import Compute, Loop, StreamCalls, initial_state

__all__ = ["Compute", "Loop", "StreamCalls", "initial_state"]
