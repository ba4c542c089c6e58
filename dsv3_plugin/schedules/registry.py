"""Published schedules, one file each: a function of the number of ranks and of micro-batches."""

from collections.abc import Callable

from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.zb1p import zb1p
from dsv3_plugin.schedules.zbv import zbv

# By the name a user gives; `interleaved` stands apart, for it also takes a number of chunks.
PUBLISHED: dict[str, Callable[[int, int], Schedule]] = {
    "1f1b": one_f_one_b,
    "zb1p": zb1p,
    "zbv": zbv,
    "dualpipe": dualpipe,
    "dualpipe_v": dualpipe_v,
}

__all__ = ["PUBLISHED", "dualpipe", "dualpipe_v", "interleaved", "one_f_one_b", "zb1p", "zbv"]
