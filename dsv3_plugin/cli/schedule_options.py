"""The options of `dsv3 schedule` in groups: which schedule, what its stages cost, how to search."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.validation import nearest
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import Costs, StageCosts, relative_stages
from dsv3_plugin.schedules.csv_file import read_csv
from dsv3_plugin.schedules.placement import pipeline_ranks, stage_placement
from dsv3_plugin.schedules.registry import MOST_PASSES, SCHEDULES, refuse_larger

if TYPE_CHECKING:
    from dsv3_plugin.schedules.search.search import Found


@dataclass(frozen=True)
class Choice:
    """Which schedule: a published one by name and size, one in a file, or one to search for.

    Each field is the option of its name; None is an option not given.
    """

    name: str | None
    from_csv: Path | None
    pp: int | None
    micro_batches: int | None
    vp: int | None
    overlap: bool

    @property
    def searched(self) -> bool:
        """Whether it has to be searched for."""
        kind = SCHEDULES.get(self.name or "")
        return self.from_csv is None and kind is not None and kind.searched

    def size(self) -> tuple[int, int]:
        """The ranks and micro-batches that were asked for.

        Raises:
            UserError: one of them is not given, or is none.
        """
        for option, value in (("--pp", self.pp), ("--micro-batches", self.micro_batches)):
            if value is None:
                raise UserError(f"a schedule needs its {option}: --pp 4 --micro-batches 8, say")
            if value < 1:
                raise UserError(f"{option} must be at least 1, not {value}")
        assert self.pp is not None
        assert self.micro_batches is not None
        return self.pp, self.micro_batches

    def schedule(self) -> Schedule:
        """The schedule in the file, or the published one.

        Raises:
            UserError: the file cannot be read or is no schedule; there is none of this name or
                size; an option that does not go with it.
        """
        if self.from_csv is not None:
            return self._in_file(self.from_csv)
        if self.name is None:
            known = ", ".join(SCHEDULES)
            raise UserError(f"name a schedule ({known}) or a recipe, or give --from-csv FILE")
        kind = SCHEDULES.get(self.name)
        if kind is None:
            known = ", ".join(SCHEDULES)
            near = nearest(self.name, SCHEDULES)
            raise UserError(
                f"no schedule '{self.name}'{near}; there are {known}, and --from-csv FILE"
            )
        pp, micro_batches = self.size()
        if (self.vp is not None and not kind.takes_stages_per_rank) or (
            self.overlap and kind.make_overlapped is None
        ):
            raise UserError(f"--vp and --overlap belong to {_takers()}; {self.name} has its own")
        return kind.schedule(pp, micro_batches, self.vp, overlap=self.overlap)

    def _in_file(self, path: Path) -> Schedule:
        if self.name is not None:
            raise UserError(f"name a schedule or give --from-csv, not both ({self.name}, {path})")
        schedule = read_csv(path)
        for option, wanted, has in (
            ("--pp", self.pp, schedule.pp),
            ("--micro-batches", self.micro_batches, schedule.num_micro_batches),
        ):
            if wanted not in (None, has):
                raise UserError(f"{path} has {option} {has}, not {wanted}")
        if self.vp is not None or self.overlap:
            raise UserError(f"--vp and --overlap belong to {_takers()}; {path} has its own")
        return schedule

    def stage_ranks(self) -> tuple[int, ...]:
        """Where the stages lie of a schedule that is searched for.

        Raises:
            UserError: as `size`, or an option that a search does not take.
        """
        pp, micro_batches = self.size()
        if self.overlap:
            raise UserError(
                f"--overlap belongs to {_takers()}; search pairs wherever it saves time"
            )
        if self.vp is not None and self.vp < 1:
            raise UserError(f"--vp must be at least 1, not {self.vp}")
        per_rank = 2 if self.vp is None else self.vp
        refuse_larger(pp * per_rank, micro_batches)
        return stage_placement(pp, per_rank)


def _takers() -> str:
    """The schedules that leave something to --vp and --overlap."""
    kinds = SCHEDULES.values()
    return " and ".join(k.name for k in kinds if k.takes_stages_per_rank or k.make_overlapped)


@dataclass(frozen=True)
class StageOptions:
    """What the stages cost: the times of --cost, and how large each stage is.

    Each field is the option of its name; None is an option not given.
    """

    cost: str
    stage_costs: str | None
    model: str | None
    layers: str | None
    seq_length: int | None

    def of_schedule(self, schedule: Schedule) -> StageCosts:
        """The costs of a schedule's stages."""
        costs = self.of_stages(schedule.pp, pipeline_ranks(schedule))
        return costs.repeated(len(schedule.streams))

    def of_stages(self, pp: int, stage_ranks: Sequence[int]) -> StageCosts:
        """The costs of stages that lie on these ranks, along the model.

        Raises:
            UserError: the options do not go together, or are of another number of stages.
        """
        costs = parse_costs(self.cost)
        if self.model is not None:
            return self._of_model(self.model, pp, stage_ranks, costs)
        if self.layers is not None:
            raise UserError("--layers says where the layers of a --model lie; name the model")
        if self.seq_length is not None:
            raise UserError("--seq-length is of the sequences of a --model; name the model")
        if self.stage_costs is None:
            return relative_stages(costs, pp, [1.0] * len(stage_ranks))
        sizes = parse_numbers("--stage-costs", self.stage_costs)
        _require_count("--stage-costs", sizes, len(stage_ranks))
        if not any(sizes):
            raise UserError("--stage-costs must be positive numbers")
        return relative_stages(costs, pp, sizes)

    def _of_model(self, name: str, pp: int, stage_ranks: Sequence[int], costs: Costs) -> StageCosts:
        if self.stage_costs is not None:
            raise UserError("--model and --stage-costs both size the stages; give one of them")
        from dsv3_plugin.planner.stage_costs import even_layers, model_stages
        from dsv3_plugin.recipe.load import load_model

        model, length = load_model(name), self.seq_length or 4096
        if self.layers is None:
            layers = even_layers(model, stage_ranks, length)
        else:
            layers = parse_layers(self.layers)
            _require_count("--layers", layers, len(stage_ranks))
        return model_stages(model, layers, pp, costs, length)


def _require_count(option: str, values: Sequence[float], count: int) -> None:
    if len(values) != count:
        raise UserError(
            f"{option} gives {number_of(len(values), 'stage')}, but the schedule has {count}"
        )


@dataclass(frozen=True)
class SearchOptions:
    """How to search. Each field is the option of its name; None is an option not given."""

    activations: float | None
    seed: int | None
    effort: float | None

    def refuse(self) -> None:
        """Raise UserError if one of them is given, where nothing is searched for."""
        for option, value in (
            ("--activations", self.activations),
            ("--seed", self.seed),
            ("--effort", self.effort),
        ):
            if value is not None:
                raise UserError(f"{option} belongs to search; leave it out")

    def search(self, choice: Choice, stages: StageOptions) -> "Found":
        """Search for the schedule that was asked for."""
        pp, micro_batches = choice.size()
        for option, value in (("--activations", self.activations), ("--effort", self.effort)):
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{option} must be a number from 0 up, not {value:g}")
        from dsv3_plugin.schedules.search.search import search

        return search(
            pp,
            micro_batches,
            stages.of_stages(pp, choice.stage_ranks()),
            self.activations,
            seed=0 if self.seed is None else self.seed,
            effort=1.0 if self.effort is None else self.effort,
        )


_COSTS = {
    "F": "forward",
    "I": "input",
    "W": "weight",
    "FB": "pair",
    "comm": "latency",
    "link": "occupancy",
}


def parse_costs(text: str) -> Costs:
    """Costs from `F=1,I=1,W=1,FB=2.5,comm=0,link=0`; what is left out has its default.

    F, I and W default to 1, FB to 5/6 of their sum, comm (latency of a message) and link (time it
    occupies its link) to nothing.
    """
    given: dict[str, float] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, _, value = item.partition("=")
        if key not in _COSTS:
            raise UserError(f"--cost knows no '{key}'; it takes {', '.join(_COSTS)}")
        try:
            given[_COSTS[key]] = _finite(value)
        except ValueError:
            raise UserError(f"--cost {key} needs a number, not '{value}'") from None
    serial = sum(given.get(part, 1.0) for part in ("forward", "input", "weight"))
    return Costs(**({"pair": serial * 5 / 6} | given))


def parse_numbers(option: str, text: str) -> list[float]:
    """Numbers by commas, `2*30` being thirty twos."""
    numbers: list[float] = []
    for item in text.split(","):
        value, _, times = item.partition("*")
        try:
            number = _finite(value)
            repeats = int(times) if times else 1
        except ValueError:
            raise UserError(f"{option} takes numbers such as 1,2*30,0, not '{item}'") from None
        if number < 0 or repeats < 1:
            raise UserError(f"{option} takes no negative numbers, such as in '{item}'")
        if len(numbers) + repeats > MOST_PASSES:
            raise UserError(f"{option} takes {MOST_PASSES:,} stages at most")
        numbers += [number] * repeats
    return numbers


def parse_layers(text: str) -> list[int]:
    """Layers of each stage by commas, `2*30` being thirty times two."""
    numbers = parse_numbers("--layers", text)
    for number in numbers:
        if not number.is_integer():
            raise UserError(f"--layers takes whole numbers of layers, not {number:g}")
    return [int(number) for number in numbers]


def _finite(text: str) -> float:
    """The number; ValueError for what is none, and for inf and nan."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
