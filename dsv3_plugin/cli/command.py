"""The `dsv3` command: one verb, one function, no logic of its own.

Every verb imports what it needs inside its body, so that `dsv3 plan` and `dsv3 schedule` never
pay for torch. A `UserError` becomes one sentence on stderr and exit code 2.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from dsv3_plugin.errors import UserError

app = typer.Typer(
    name="dsv3",
    help="Train DeepSeek-V3-style models with Megatron-Core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def dsv3() -> None:
    """Train DeepSeek-V3-style models with Megatron-Core."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Shipped name (pretrain/tiny) or path.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value for this run.")
    ] = None,
) -> None:
    """Train a recipe: start its processes, or be one of them under torchrun or srun."""
    from dsv3_plugin.launch.supervise import train as run

    raise typer.Exit(run(recipe, overrides or []))


@app.command()
def args(
    recipe: Annotated[str, typer.Argument(help="Shipped name (pretrain/tiny) or path.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value for this run.")
    ] = None,
) -> None:
    """Print upstream Megatron-LM's command line, one flag a line; what has no flag, on stderr."""
    from dsv3_plugin import machine
    from dsv3_plugin.recipe.arguments import beyond_the_line, command_line
    from dsv3_plugin.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    print(command_line(loaded, has_gpu=machine.has_gpu()))
    for phrase in beyond_the_line(loaded):
        print(f"dsv3: upstream has no flag for this: {phrase}", file=sys.stderr)


@app.command()
def plan(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_MODEL", help="Shipped name (pretrain/tiny, deepseek-v3) or path."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, for a recipe.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seq_length: Annotated[
        int | None,
        typer.Option(help="Tokens per sequence; a recipe knows its own, 4096 for a model.", min=1),
    ] = None,
) -> None:
    """Count parameters, and floating-point operations per token, exactly."""
    from json import dumps

    from dsv3_plugin.cli.plan_view import as_mapping, as_table
    from dsv3_plugin.recipe.load import load_recipe_or_model
    from dsv3_plugin.recipe.schema import Recipe

    found = load_recipe_or_model(what, overrides or [])
    model, length = found, 4096
    if isinstance(found, Recipe):
        model, length = found.model, found.data.seq_length
    if json:
        print(dumps(as_mapping(model, seq_length or length)))
        return
    from rich.console import Console

    Console().print(as_table(model, seq_length or length))


@app.command()
def schedule(
    name: Annotated[
        str | None,
        typer.Argument(
            help="1f1b, interleaved, zb1p, zbv, dualpipe, dualpipe_v, or search for a better one."
        ),
    ] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Ranks (devices) of the pipeline.")] = None,
    micro_batches: Annotated[
        int | None, typer.Option(help="Micro-batches of a step; both directions of dualpipe.")
    ] = None,
    vp: Annotated[
        int | None,
        typer.Option(
            "--vp", help="Chunks per rank, of interleaved and search; 2 by default, a V in search."
        ),
    ] = None,
    overlap: Annotated[
        bool,
        typer.Option("--overlap", help="interleaved: Megatron's overlapped pairs."),
    ] = False,
    cost: Annotated[
        str,
        typer.Option(
            help="Times of one P-th of the model: F=1,I=1,W=1,FB=2.5 (FB an overlapped pair); "
            "comm=0 is the latency of a message, link=0 the time it occupies its link."
        ),
    ] = "",
    from_csv: Annotated[
        Path | None, typer.Option(help="Read, and prove, a schedule in torch's text form.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write it in torch's text form.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; idle_per_rank is time.")
    ] = False,
    png: Annotated[Path | None, typer.Option(help="Draw it.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw it.")] = None,
    stage_costs: Annotated[
        str | None, typer.Option(help="Relative work of the stages: 1,2*30,3.9")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Stages as large as this model's FLOPs (deepseek-v3).")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Its decoder layers on each stage: 1,2*30,0")
    ] = None,
    seq_length: Annotated[
        int | None, typer.Option(help="Tokens per sequence, for --model; 4096 by default.", min=1)
    ] = None,
    activations: Annotated[
        float | None,
        typer.Option(
            help="search: most micro-batches of a 1F1B stage that a rank holds; "
            "by default what dualpipe_v holds."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="search: seed; 0 by default.")] = None,
    effort: Annotated[
        float | None,
        typer.Option(help="search: 1, the default, is about half a minute of one core."),
    ] = None,
) -> None:
    """Show, time, prove, draw or search for a pipeline schedule."""
    from json import dumps

    from dsv3_plugin.cli.schedule_options import (
        Stages,
        as_text,
        check_pictures,
        choose_schedule,
        found_as_text,
        parse_costs,
        parse_layers,
        parse_numbers,
        refuse_options_of_search,
        searched,
        stages_of,
        write_csv,
    )
    from dsv3_plugin.schedules.simulate import simulate

    check_pictures(png, svg)
    costs = parse_costs(cost)
    stages = Stages(
        sizes=parse_numbers("--stage-costs", stage_costs) if stage_costs is not None else None,
        model=model,
        layers=parse_layers(layers) if layers is not None else None,
        seq_length=seq_length,
    )
    if name == "search" and from_csv is None:
        found = searched(
            pp,
            micro_batches,
            vp,
            stages,
            costs,
            overlap=overlap,
            activations=activations,
            seed=seed,
            effort=effort,
        )
        timeline, summary, text = found.timeline, found.summary(), found_as_text(found)
    else:
        refuse_options_of_search({"--activations": activations, "--seed": seed, "--effort": effort})
        chosen = choose_schedule(name, from_csv, pp, micro_batches, vp, overlap)
        timeline = simulate(chosen, stages_of(chosen, stages, costs))
        summary, text = timeline.summary(), as_text(timeline)
    print(dumps(summary) if json else text)
    if csv is not None:
        write_csv(timeline.schedule, csv)
    for picture in (png, svg):
        if picture is not None:
            from dsv3_plugin.schedules.draw import draw

            draw(timeline, picture)


model = typer.Typer(help="Models: from a Hugging Face config to YAML.", no_args_is_help=True)
app.add_typer(model, name="model")


@model.command("from-hf")
def model_from_hf(
    config: Annotated[Path, typer.Argument(help="config.json of the DeepSeek-V2/V3 family.")],
    out: Annotated[
        Path | None, typer.Option(help="YAML file to write; without it, standard output.")
    ] = None,
) -> None:
    """Write the model YAML of a Hugging Face config."""
    from dsv3_plugin.recipe.hf_config import read_hf_model

    found = read_hf_model(config)
    if out is None:
        print(found.to_yaml(), end="")
    else:
        found.write(out)


data = typer.Typer(help="Datasets: build one, look into one.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command("build")
def data_build(
    corpus: Annotated[
        list[str],
        typer.Option(help='"stdlib", a file or a folder (text, JSONL, parquet); may be repeated.'),
    ],
    tokenizer: Annotated[
        str, typer.Option(help="bpe:N trains one of N tokens; else a Hugging Face folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")],
    fim_rate: Annotated[
        float, typer.Option(help="Share of documents cut for fill-in-the-middle, 0 to 1.")
    ] = 0.0,
    held_out: Annotated[
        float, typer.Option(help="Share of documents kept from training, 0 to 1.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Seed of the fill-in-the-middle cuts.")] = 1234,
    text_key: Annotated[str, typer.Option(help="JSONL key or parquet column to read.")] = "text",
    workers: Annotated[int, typer.Option(help="Processes that encode.", min=1)] = 1,
) -> None:
    """Turn text, JSONL or parquet into a dataset in upstream's indexed format."""
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()  # no GPU is needed, and a visible one would only be initialised

    from dsv3_plugin.cli.data_view import summarize
    from dsv3_plugin.data.build import build_dataset
    from dsv3_plugin.data.tokenizer import choose_tokenizer

    dataset = build_dataset(
        corpus,
        choose_tokenizer(tokenizer),
        out,
        held_out=held_out,
        fim_rate=fim_rate,
        seed=seed,
        text_key=text_key,
        workers=workers,
    )
    print(summarize(dataset))


@data.command("show")
def data_show(
    directory: Annotated[Path, typer.Argument(help="Folder of the dataset.")],
    document: Annotated[int, typer.Option(help="Which training document to show.")] = 0,
    tokens: Annotated[int, typer.Option(help="How many tokens of it.", min=1)] = 120,
) -> None:
    """Say what a dataset holds, and decode the beginning of one document."""
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()

    from dsv3_plugin.cli.data_view import decoded, summarize
    from dsv3_plugin.data.dataset_folder import open_dataset

    dataset = open_dataset(directory)
    print(f"{summarize(dataset)}\n\ndocument {document} begins:\n")
    print(decoded(dataset, document, tokens))


@app.command()
def logits(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder, trained or imported.")],
    tokens: Annotated[Path, typer.Option(help=".npy file, int64 [b, s].")],
    out: Annotated[Path, typer.Option(help=".npy file to write, float32 [b, s, vocab].")],
    mtp: Annotated[
        bool,
        typer.Option("--mtp", help="Of the multi-token prediction layers, [b, s, depth, vocab]."),
    ] = False,
) -> None:
    """Compute the logits of given tokens in FP32."""
    from dsv3_plugin.distributed.world import single_process

    with single_process():
        from dsv3_plugin.inference.from_checkpoint import write_logits

        write_logits(checkpoint, tokens, out, mtp=mtp)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder with its tokenizer.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.", min=1)] = 100,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, higher is bolder.", min=0)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from this share of the probability.", min=0, max=1)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Continue a text."""
    from dsv3_plugin.distributed.world import single_process

    with single_process():
        from dsv3_plugin.inference.from_checkpoint import continue_text

        for piece in continue_text(
            checkpoint,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        ):
            print(piece, end="", flush=True)
    print()


@app.command("import")
def import_(
    hf_dir: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    checkpoint: Annotated[Path, typer.Argument(help="New folder for the checkpoint.")],
    workers: Annotated[int, typer.Option(help="Threads.", min=1)] = 2,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp32 or keep-fp8; each tensor's own by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed import.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read *.bin weights, as tensors only.")
    ] = False,
) -> None:
    """Turn a Hugging Face folder into a Megatron checkpoint, streamed."""
    from dsv3_plugin.checkpoint import import_hf
    from dsv3_plugin.cli.conversion_view import progress, report_line

    with progress("import") as shown:
        report = import_hf(
            hf_dir,
            checkpoint,
            workers=workers,
            dtype=dtype,
            resume=resume,
            allow_pickle=allow_pickle,
            progress=shown,
        )
    print(report_line("imported", checkpoint, report))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, imported or trained.")],
    hf_dir: Annotated[Path, typer.Argument(help="New folder for the Hugging Face model.")],
    dtype: Annotated[
        str | None, typer.Option(help="bf16 or fp32; each tensor's own by default.")
    ] = None,
    fp8: Annotated[bool, typer.Option("--fp8", help="Linear weights in DeepSeek's FP8.")] = False,
    shard_size: Annotated[str, typer.Option(help="Size of a safetensors file.")] = "5GB",
    workers: Annotated[int, typer.Option(help="Threads.", min=1)] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed export.")] = False,
) -> None:
    """Turn a checkpoint into a Hugging Face folder that transformers loads, streamed."""
    from dsv3_plugin.checkpoint import export_hf
    from dsv3_plugin.checkpoint.formats.hf_writer import shard_bytes
    from dsv3_plugin.cli.conversion_view import progress, report_line, warn_without_tokenizer

    with progress("export") as shown:
        report = export_hf(
            checkpoint,
            hf_dir,
            dtype=dtype,
            fp8=fp8,
            shard_size=shard_bytes(shard_size),
            workers=workers,
            resume=resume,
            progress=shown,
        )
    print(report_line("exported", hf_dir, report))
    warn_without_tokenizer(hf_dir)


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(help="Hugging Face folder or checkpoint.")],
    b: Annotated[
        Path | None, typer.Argument(help="The other one; `a`'s own manifest by default.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Absolute difference that counts as none; 0: bit for bit.", min=0)
    ] = 0.0,
    workers: Annotated[int, typer.Option(help="Threads.", min=1)] = 2,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read *.bin weights, as tensors only.")
    ] = False,
) -> None:
    """Compare all tensors of two models, or one with its manifest; exit code 1 if any differs."""
    from dsv3_plugin.checkpoint.conversion.manifest import check
    from dsv3_plugin.checkpoint.conversion.verify import verify as compare
    from dsv3_plugin.cli.conversion_view import print_comparison, progress

    with progress("verify") as shown:
        if b is None:
            comparison = check(a, workers=workers, progress=shown)
        else:
            comparison = compare(
                a,
                b,
                tolerance=tolerance,
                workers=workers,
                allow_pickle=allow_pickle,
                progress=shown,
            )
    print_comparison(comparison, tolerance)
    raise typer.Exit(1 if comparison.differences else 0)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Hugging Face folder or checkpoint.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is in a checkpoint or a Hugging Face folder, from headers alone."""
    from json import dumps

    from dsv3_plugin.checkpoint.inspect import inspect as look
    from dsv3_plugin.cli.conversion_view import print_findings

    findings = look(path)
    if json:
        print(dumps(findings.to_mapping(), indent=2))
    else:
        print_findings(findings)


@app.command()
def load(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    png: Annotated[
        Path | None, typer.Option(help="Draw heat maps over layers, steps and experts here.")
    ] = None,
) -> None:
    """Show how evenly the experts, ranks and nodes of a run are loaded."""
    from dsv3_plugin.files import metrics_file
    from dsv3_plugin.report.balance import LoadHistory, draw_load, load_table
    from dsv3_plugin.training.run import RunDirectory

    metrics = RunDirectory(run).metrics
    history = LoadHistory(metrics_file.stream(metrics) if metrics.exists() else [], run)
    print(load_table(history))
    if png is not None:
        draw_load(history, png, title=run.resolve().name)


@app.command()
def doctor() -> None:
    """Say what this machine has, and what each missing thing costs."""
    from dsv3_plugin.launch.doctor import examine, report

    report(examine())


def main() -> None:
    """Entry point of the console script: whatever goes wrong becomes one sentence.

    Exit code 2 for what a person can mend, 1 for a fault of ours; DSV3_DEBUG=1 shows where.
    """
    if not sys.warnoptions:  # a library's warnings are for developers; `-W default` shows them
        warnings.simplefilter("ignore")
    try:
        sys.exit(app(standalone_mode=False, prog_name="dsv3") or 0)
    except typer.exceptions.TyperException as error:
        asked_nothing = error.format_message().startswith("Usage:")
        print(error.format_message() if asked_nothing else usage_sentence(error), file=sys.stderr)
        sys.exit(2)
    except typer.Abort:  # Ctrl-C
        sys.exit(130)
    except Exception as error:
        if os.environ.get("DSV3_DEBUG") == "1":
            raise
        sentence, code = explain(error)
        print(f"dsv3: {sentence}", file=sys.stderr)
        sys.exit(code)


def usage_sentence(error: typer.exceptions.TyperException) -> str:
    """What is wrong with a command line, and where to read how it is written."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "dsv3"
    return f"dsv3: {error.format_message().rstrip('.')} (see {command} --help)."


def explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code for what ended a command."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, OSError) and error.strerror:
        about = f"{error.filename}: " if error.filename is not None else ""
        return f"{about}{error.strerror}.", 2
    first = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return f"unexpected {what} (a fault of dsv3; DSV3_DEBUG=1 shows where it happened).", 1
