"""What the commands that train over and over have in common: their options, and their frame."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from deltalens.cli import console, options
from deltalens.cli.options import (
    Accumulate,
    AccumulateMean,
    ApplyTo,
    BatchSize,
    Blocks,
    ChooseOn,
    CompletionField,
    Config,
    Data,
    Debug,
    Device,
    Dtype,
    Epochs,
    EvalData,
    Fresh,
    Jobs,
    Json,
    KeepCheckpoints,
    LearningRate,
    Limit,
    MaxLength,
    MessagesField,
    Model,
    Modules,
    Objective,
    PromptField,
    Quiet,
    Recipe,
    ScopeOfMethod,
    ScoreRate,
    Seeds,
    Steps,
    Study,
    TextField,
    Threshold,
)

if TYPE_CHECKING:
    from deltalens.io.records import StudyRecord
    from deltalens.studies.engine import StudyWatch
    from deltalens.studies.training_plans import TrainingData
    from deltalens.training.spec import TrainingSpec

__all__ = ["Sweep", "split", "takes_sweep"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The options of a command whose cells are trainings."""

    model: Model
    data: Data
    eval_data: EvalData
    out: Study
    seeds: Seeds = 3
    mask_ratio: Annotated[
        str | None, typer.Option(help="The fraction masked out, where it is not swept.")
    ] = None
    scope: ScopeOfMethod = None
    apply_to: ApplyTo = None
    blocks: Blocks = None
    modules: Modules = None
    threshold: Threshold = None
    objective: Objective = "sft"
    epochs: Epochs = None
    steps: Steps = None
    batch_size: BatchSize = None
    accumulate: Accumulate = None
    accumulate_mean: AccumulateMean = "tokens"
    learning_rate: LearningRate = None
    score_learning_rate: ScoreRate = None
    max_length: MaxLength = None
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between measurements on the way.")
    ] = None
    choose_on: ChooseOn = None
    prompt_field: PromptField = None
    completion_field: CompletionField = None
    messages_field: MessagesField = None
    text_field: TextField = None
    limit: Limit = None
    config: Config = None
    recipe: Recipe = None
    jobs: Jobs = 1
    keep_checkpoints: KeepCheckpoints = False
    device: Device = "auto"
    dtype: Dtype = "auto"
    fresh: Fresh = False
    as_json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def run(
        self,
        methods: Sequence[str],
        study: Callable[[TrainingData, TrainingSpec, StudyWatch], StudyRecord],
        swept: dict[str, str] | None = None,
    ) -> None:
        """The frame of such a command: progress, the study, its pictures, its summary.

        Args:
            methods: whose options are looked for.
            study: makes it, of the source, the settings of a training, and who is told.
            swept: settings that the study goes through, and the option that says so.
        """
        kept = f"stopped; finished trainings are kept in {self.out}, the same command goes on"
        with console.command(self.debug, kept):
            from deltalens.figures import draw
            from deltalens.studies.engine import StudyWatch

            console.quieten()
            with console.meter(self.quiet or self.as_json) as meter:
                watch = StudyWatch(stage=meter.stage, advance=meter.advance, within=meter.within)
                record = study(self.source(), self.spec(methods, swept), watch)
                meter.stage("drawing", None)
                pictures = draw(record.path)
            shown = [picture for picture in pictures if picture.suffix in (".png", ".md")]
            console.show(record, shown, as_json=self.as_json, quiet=self.quiet)

    def source(self) -> TrainingData:
        """The model and the data."""
        from deltalens.io.locate import locate
        from deltalens.studies.training_plans import TrainingData

        return TrainingData(
            model=locate(self.model),
            data=self.data,
            eval_data=self.eval_data,
            fields=options.fields(
                prompt=self.prompt_field,
                completion=self.completion_field,
                messages=self.messages_field,
                text=self.text_field,
            ),
            limit=self.limit,
            choose_on=self.choose_on,
            eval_every=self.eval_every,
            device=self.device,
            dtype=self.dtype,
        )

    def spec(self, methods: Sequence[str], swept: dict[str, str] | None = None) -> TrainingSpec:
        """The settings of a training; what is swept is each cell's own."""
        from deltalens.training.recipe import read_recipe
        from deltalens.training.spec import TrainingSpec

        own = {
            "mask_ratio": self.mask_ratio,
            "scope": self.scope,
            "apply_to": self.apply_to,
            "blocks": self.blocks,
            "modules": self.modules,
            "threshold": self.threshold,
            "score_learning_rate": self.score_learning_rate,
        }
        given = {
            **options.given_to(methods, own, swept),
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "accumulate_mean": self.accumulate_mean,
            "learning_rate": self.learning_rate,
            "max_length": self.max_length,
            "recipe": read_recipe(self.config, self.objective),
        }
        settings = options.settings_of(self.recipe, methods, given, list(swept or ()))
        return TrainingSpec(objective=self.objective, **settings)

    @property
    def how(self) -> dict[str, Any]:
        """How the study is made, as its function takes it."""
        return {
            "seeds": self.seeds,
            "keep_checkpoints": self.keep_checkpoints,
            "jobs": self.jobs,
            "fresh": self.fresh,
        }


def split(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def takes_sweep(command: Callable[..., None]) -> Callable[..., None]:
    """A command of arguments and options of its own, and of a `Sweep`: its parameter `sweep` stands
    for all of that one's options, after the command's own arguments."""
    hints, own = (
        get_type_hints(Sweep, include_extras=True),
        inspect.signature(command, eval_str=True),
    )
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(Sweep)
    ]
    before = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, one in own.parameters.items()
        if name != "sweep"
    ]
    arguments = [one for one in before if one.default is inspect.Parameter.empty]
    rest = [one for one in before if one.default is not inspect.Parameter.empty]
    signature = inspect.Signature([*arguments, *shared[:4], *rest, *shared[4:]])

    @functools.wraps(command)
    def whole(**given: Any) -> None:
        known = {field.name for field in fields(Sweep)}
        sweep = Sweep(**{name: value for name, value in given.items() if name in known})
        command(**{n: v for n, v in given.items() if n not in known}, sweep=sweep)

    whole.__signature__ = signature  # type: ignore[attr-defined]
    whole.__annotations__ = {n: one.annotation for n, one in signature.parameters.items()}
    del whole.__wrapped__
    return whole
