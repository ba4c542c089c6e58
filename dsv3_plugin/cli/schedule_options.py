"""What `dsv3 schedule` reads from its options and prints: costs, stages, a schedule in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.costs import Costs, StageCosts, sized_stages
from dsv3_plugin.schedules.csv_file import read_csv
from dsv3_plugin.schedules.placement import stage_placement
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.search.search import Found, search
from dsv3_plugin.schedules.simulate import Timeline

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


@dataclass(frozen=True)
class Stages:
    """How the stages of a pipeline are sized; without any of these, evenly.

    sizes: computation of each stage relative to the others.
    model: shipped name or path of a model whose FLOPs give the sizes.
    layers: its decoder layers on each stage; by default such that ranks have equal work.
    seq_length: its tokens per sequence; 4096 by default.
    """

    sizes: Sequence[float] | None = None
    model: str | None = None
    layers: Sequence[int] | None = None
    seq_length: int | None = None

    def costs(
        self, costs: Costs, pp: int, stage_ranks: Sequence[int], copies: int = 1
    ) -> StageCosts:
        """Costs of all stages.

        stage_ranks: rank of each stage of the model. copies: pipelines that hold the model.
        """
        count = len(stage_ranks)
        if self.model is not None:
            if self.sizes is not None:
                raise UserError("--model and --stage-costs both size the stages; give one of them")
            from dsv3_plugin.planner.stage_costs import even_layers, model_stages
            from dsv3_plugin.recipe.load import load_model

            model = load_model(self.model)
            length = self.seq_length or 4096
            layers = self.layers or even_layers(model, stage_ranks, length)
            _check_count("--layers", layers, count)
            one = model_stages(model, layers, pp, costs, length)
        else:
            if self.layers is not None:
                raise UserError("--layers says where the layers of a --model lie; name the model")
            if self.seq_length is not None:
                raise UserError("--seq-length is of the sequences of a --model; name the model")
            sizes = self.sizes or [1.0] * count
            _check_count("--stage-costs", sizes, count)
            if min(sizes) < 0 or not any(sizes):
                raise UserError("--stage-costs must be positive numbers")
            one = sized_stages(costs, [size * pp / sum(sizes) for size in sizes])
        return StageCosts(
            one.forward * copies,
            one.input * copies,
            one.weight * copies,
            one.hidden * copies,
            one.activation * copies,
            one.latency,
            one.occupancy,
        )


def _check_count(option: str, values: Sequence[float], count: int) -> None:
    if len(values) != count:
        raise UserError(f"{option} gives {len(values)} stages, but the schedule has {count}")


def stages_of(schedule: Schedule, stages: Stages, costs: Costs) -> StageCosts:
    """Costs of a schedule's stages."""
    first = schedule.streams[0]
    if any(len(stream) != len(first) for stream in schedule.streams):
        raise UserError("the pipelines of the schedule have different numbers of stages")
    ranks = [schedule.stage_ranks[stage] for stage in first]
    return stages.costs(costs, schedule.pp, ranks, copies=len(schedule.streams))


def choose_schedule(
    name: str | None,
    from_csv: Path | None,
    pp: int | None,
    micro_batches: int | None,
    vp: int | None,
    overlap: bool,
) -> Schedule:
    """The schedule that the options of `dsv3 schedule` name: a file, or a published one."""
    if from_csv is not None:
        if name is not None:
            raise UserError(f"name a schedule or give --from-csv, not both ({name}, {from_csv})")
        schedule = read_csv(from_csv)
        for option, wanted, has in (
            ("--pp", pp, schedule.pp),
            ("--micro-batches", micro_batches, schedule.num_micro_batches),
        ):
            if wanted not in (None, has):
                raise UserError(f"{from_csv} has {option} {has}, not {wanted}")
        if vp is not None or overlap:
            raise UserError(f"--vp and --overlap belong to {_takers()}; {from_csv} has its own")
        return schedule
    if name is None:
        raise UserError("name a schedule, or give a file with --from-csv")
    pp, micro_batches = _size(pp, micro_batches)
    kind = SCHEDULES.get(name)
    if kind is None:
        known = ", ".join(SCHEDULES)
        raise UserError(f"no schedule '{name}'; there are {known}, and --from-csv FILE")
    if (vp is not None and not kind.takes_stages_per_rank) or (
        overlap and kind.make_overlapped is None
    ):
        raise UserError(f"--vp and --overlap belong to {_takers()}; {name} has its own")
    return kind.schedule(pp, micro_batches, vp, overlap=overlap)


def _takers() -> str:
    """The schedules that leave something to --vp and --overlap."""
    kinds = SCHEDULES.values()
    return " and ".join(k.name for k in kinds if k.takes_stages_per_rank or k.make_overlapped)


def _size(pp: int | None, micro_batches: int | None) -> tuple[int, int]:
    for option, value in (("--pp", pp), ("--micro-batches", micro_batches)):
        if value is None:
            raise UserError(f"a schedule needs its {option}")
        if value < 1:
            raise UserError(f"{option} must be at least 1, not {value}")
    assert pp is not None
    assert micro_batches is not None
    return pp, micro_batches


def refuse_options_of_search(given: Mapping[str, object]) -> None:
    """Options that only `search` reads are refused elsewhere; None is an option not given."""
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option} belongs to search; leave it out")


def check_pictures(png: Path | None, svg: Path | None) -> None:
    """A picture's name must end in what its option says, or the file would hold something else."""
    for option, ending, path in (("--png", ".png", png), ("--svg", ".svg", svg)):
        if path is not None and path.suffix.lower() != ending:
            raise UserError(f"{option} writes {ending} files; {path} does not end so")


def searched(
    pp: int | None,
    micro_batches: int | None,
    vp: int | None,
    stages: Stages,
    costs: Costs,
    *,
    overlap: bool,
    activations: float | None,
    seed: int | None,
    effort: float | None,
) -> Found:
    """A search; `activations` defaults to what DualPipeV holds on such stages, P + 1/2 of them."""
    pp, micro_batches = _size(pp, micro_batches)
    if overlap:
        raise UserError(f"--overlap belongs to {_takers()}; search pairs wherever it saves time")
    for option, value in (("--activations", activations), ("--effort", effort)):
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{option} must be a number from 0 up, not {value:g}")
    if vp is not None and vp < 1:
        raise UserError(f"--vp must be at least 1, not {vp}")
    placement = stage_placement(pp, 2 if vp is None else vp)
    stage_costs = stages.costs(costs, pp, placement)
    if activations is None:
        per_rank = [0.0] * pp
        for stage, rank in enumerate(placement):
            per_rank[rank] += stage_costs.activation[stage]
        activations = (pp + 0.5) * max(per_rank)
    return search(
        pp,
        micro_batches,
        stage_costs,
        activations,
        seed=0 if seed is None else seed,
        effort=1.0 if effort is None else effort,
    )


def as_text(timeline: Timeline) -> str:
    """A schedule in words and one line per rank."""
    schedule = timeline.schedule
    lines = [
        f"{schedule.name}: {schedule.pp} ranks, {schedule.num_micro_batches} micro-batches, "
        f"{schedule.num_stages} stages",
        f"makespan {timeline.makespan:g}, idle {100 * timeline.idle_fraction:.2f} %, "
        f"peak activations {max(timeline.peak_activations):g} (micro-batches of a 1F1B stage)",
        "",
        "rank       idle   peak  stages",
    ]
    for rank, (idle, peak) in enumerate(
        zip(timeline.idle_per_rank, timeline.peak_activations, strict=True)
    ):
        stages = ", ".join(str(s) for s, holder in schedule.stage_ranks.items() if holder == rank)
        lines.append(f"{rank:4} {idle:10.4g} {peak:6.4g}  {stages}")
    return "\n".join(lines)


def found_as_text(found: Found) -> str:
    """The same for a search, with what bounds it and what it is compared with."""
    lines = [
        as_text(found.timeline),
        "",
        f"no schedule can be shorter than {found.bound:g}: {100 * found.distance:.2f} % to go",
    ]
    for name, makespan in sorted(found.published.items(), key=lambda item: item[1]):
        gain = 1 - found.timeline.makespan / makespan
        lines.append(f"{name} takes {makespan:g}: {100 * gain:.2f} % saved")
    return "\n".join(lines)
