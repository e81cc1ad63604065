"""The options that several functions, and so several commands, share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from deltalens.api.described import Arg, Opt
from deltalens.training.methods import Method

__all__ = [
    "Base",
    "DeviceMapOptions",
    "EvalData",
    "EvaluatingOptions",
    "ExecutionOptions",
    "FieldOptions",
    "Ft",
    "MeasuringOptions",
    "Methods",
    "Model",
    "Names",
    "NewFolder",
    "PairStudyOptions",
    "StudyFolder",
    "TaskOptions",
    "TensorOptions",
    "TrainData",
    "TrainingOptions",
    "TrainingStudyOptions",
    "WhereOptions",
]

_SETTING = "For all methods that have it; repeatable."

Names = str | Sequence[str]
"""Several names: "a,b" or a sequence."""
Files = str | Path | Sequence[str | Path]
"""One file or several."""

Ft = Annotated[str | Path, Arg("FT", "The fine-tune: a folder, a file, or org/name[@revision].")]
Base = Annotated[str | Path, Arg("BASE", "The base it was tuned from: likewise.")]
Model = Annotated[str | Path, Arg("MODEL", "The model: a folder, or org/name[@revision].")]
Methods = Annotated[
    str | Method | Sequence[str | Method],
    Arg("METHODS", "Methods, separated by commas; settings behind colons: gmt:scope=global,sft."),
]
NewFolder = Annotated[
    str | Path,
    Opt("Folder to write; must be new.", metavar="OUT", flags=("-o",), common=True),
]
StudyFolder = Annotated[
    str | Path,
    Opt("The study's folder, old or new.", metavar="STUDY", flags=("-o",), common=True),
]
EvalData = Annotated[Files, Opt("Rows to measure on; repeatable.", metavar="FILE", common=True)]
TrainData = Annotated[
    str | Path, Opt("Rows to train on, as train.jsonl.", metavar="FILE", common=True)
]


class FieldOptions(TypedDict, total=False):
    """What data files call their fields."""

    prompt_field: Annotated[str | None, Opt("Name of the prompt's field.", metavar="NAME")]
    completion_field: Annotated[str | None, Opt("Name of the completion's field.", metavar="NAME")]
    messages_field: Annotated[str | None, Opt("Name of the messages' field.", metavar="NAME")]
    text_field: Annotated[str | None, Opt("Name of the text's field.", metavar="NAME")]
    label_field: Annotated[str | None, Opt("Name of the label's field.", metavar="NAME")]
    sentence1_field: Annotated[str | None, Opt("Name of the first sentence's.", metavar="NAME")]
    sentence2_field: Annotated[str | None, Opt("Name of the second sentence's.", metavar="NAME")]


class WhereOptions(TypedDict, total=False):
    """Where a model is loaded, and whether its own code may run."""

    device: Annotated[str, Opt("auto, cpu, cuda, cuda:1, ...", "auto")]
    dtype: Annotated[str, Opt("auto (the checkpoint's), float32, bfloat16, float16.", "auto")]
    trust_remote_code: Annotated[bool, Opt("Run code that the model brings.", False)]


class DeviceMapOptions(TypedDict, total=False):
    """How a model that is larger than a device is loaded."""

    device_map: Annotated[
        str | Mapping[str, str | int] | Sequence[str] | None,
        Opt(
            "Spread the model over devices, by accelerate.",
            metavar="auto|balanced|MODULE=DEVICE",
        ),
    ]


class TensorOptions(TypedDict, total=False):
    """Which tensors take part."""

    include: Annotated[str | None, Opt("Only tensors whose name matches.", metavar="REGEX")]
    exclude: Annotated[str | None, Opt("Leave out tensors whose name matches.", metavar="REGEX")]
    strict: Annotated[bool, Opt("Refuse tensors that only one checkpoint has.", False)]


class _DataOptions(TypedDict, total=False):
    """On what a model is measured."""

    data: Annotated[Files, Opt("Rows to measure on; repeatable.", (), metavar="FILE", common=True)]
    limit: Annotated[
        int | None, Opt("Use the first N rows of each data set only.", minimum=1, common=True)
    ]
    metrics: Annotated[
        Names, Opt("Keep only these: loss,exact_match,kl, ...", (), metavar="NAMES", common=True)
    ]


class TaskOptions(TypedDict, total=False):
    """Standard tasks, measured through the lm-evaluation-harness."""

    tasks: Annotated[
        Names,
        Opt("Standard tasks: gsm8k=test.jsonl,mmlu, ...", (), metavar="TASKS", common=True),
    ]
    include_path: Annotated[
        str | Path | None, Opt("Folder with further tasks, as YAML files.", metavar="DIR")
    ]
    num_fewshot: Annotated[int | None, Opt("Examples in a prompt (as the task has it).", minimum=0)]
    apply_chat_template: Annotated[
        bool, Opt("Prompts of tasks as chats, by the model's template.", False)
    ]
    confirm_run_unsafe_code: Annotated[
        bool, Opt("Let tasks run code that the model writes.", False)
    ]


class ExecutionOptions(TypedDict, total=False):
    """By what cells are measured; the numbers do not depend on it."""

    jobs: Annotated[
        int | None, Opt("Cells at once, each in its own process (1).", minimum=1, common=True)
    ]
    executor: Annotated[
        str | None, Opt("sequential, processes, ray, or a package's.", metavar="NAME", common=True)
    ]
    devices: Annotated[
        Names, Opt("One process on each of these: cuda:0,cuda:1.", (), metavar="NAMES")
    ]
    address: Annotated[
        str | None, Opt("Of the Ray cluster: host:port, or auto.", metavar="ADDRESS")
    ]
    gpus_per_worker: Annotated[float | None, Opt("Reserved by Ray for each worker (1 on cuda).")]
    cpus_per_worker: Annotated[
        int | None, Opt("Likewise (1 beside a GPU, else torch's threads).", minimum=1)
    ]


class EvaluatingOptions(
    _DataOptions,
    TaskOptions,
    FieldOptions,
    WhereOptions,
    DeviceMapOptions,
    ExecutionOptions,
    total=False,
):
    """What is measured of a model as it is, and by whom."""

    batch_size: Annotated[
        str | int | None, Opt("Requests of tasks in a batch (1), or auto.", metavar="N|auto")
    ]
    metric: Annotated[
        Callable[..., Any] | None,
        Opt("A measurement of your own: model (and tokenizer) to numbers.", python_only=True),
    ]
    better: Annotated[
        Mapping[str, str] | None,
        Opt("Which way its numbers are better: {'score': 'higher'}.", python_only=True),
    ]
    version: Annotated[
        str | int | None,
        Opt("A name for it that changes whenever it measures something else.", python_only=True),
    ]
    answer_pattern: Annotated[
        str | None,
        Opt("Generate, and find the answer in the text with this.", metavar="REGEX"),
    ]
    batch_tokens: Annotated[int, Opt("Positions in a batch.", 4096)]
    fresh: Annotated[bool, Opt("Discard the study that the folder holds.", False, common=True)]
    watch: Annotated[Any, Opt("A `StudyWatch`, told of progress.", python_only=True)]


class MeasuringOptions(TensorOptions, EvaluatingOptions, total=False):
    """The same of a model whose tensors are edited."""


class PairStudyOptions(MeasuringOptions, total=False):
    """What studies of a fine-tune and its base share."""

    fidelity_tokens: Annotated[int, Opt("Without data: tokens in each of 64 sampled texts.", 128)]
    merge_adapter: Annotated[bool, Opt("FT is a PEFT adapter: merge it first.", False)]


class EfficiencyOptions(FieldOptions, WhereOptions, total=False):
    """What a study of methods' costs can be told."""

    setting: Annotated[
        Mapping[str, Any] | Sequence[str],
        Opt(_SETTING, (), metavar="NAME=VALUE", common=True),
    ]
    batch_size: Annotated[int | None, Opt("Rows in a micro-batch (8).", common=True)]
    accumulate: Annotated[int | None, Opt("Micro-batches in a step (1).")]
    max_length: Annotated[int | None, Opt("Longest row in tokens (the model's positions).")]
    train_limit: Annotated[
        int | None, Opt("Train on the first rows only.", minimum=1, metavar="ROWS")
    ]
    fresh: Annotated[bool, Opt("Discard the study that the folder holds.", False)]
    watch: Annotated[Any, Opt("Told of progress.", python_only=True)]


class _Length(TypedDict, total=False):
    """How much is trained."""

    epochs: Annotated[float | None, Opt("Passes over the rows (1).", common=True)]
    steps: Annotated[int | None, Opt("Optimizer steps, instead of epochs.", common=True)]
    batch_size: Annotated[int | None, Opt("Rows in a micro-batch (8).", common=True)]
    accumulate: Annotated[int | None, Opt("Micro-batches in a step (1).")]


class _LearningRate(TypedDict, total=False):
    """The optimizer's learning rate in one training."""

    learning_rate: Annotated[
        float | None, Opt("Peak learning rate (2e-5).", flags=("--lr",), common=True)
    ]


class _LearningRates(TypedDict, total=False):
    """The same in studies."""

    learning_rate: Annotated[
        str | float | Sequence[float] | None,
        Opt(
            "Peak rate (2e-5); a grid with --choose-on.",
            metavar="X[,X]",
            flags=("--lr",),
            common=True,
        ),
    ]


class _SharedOptions(TypedDict, total=False):
    """What trainings by all methods have in common."""

    max_length: Annotated[int | None, Opt("Longest row in tokens (the model's positions).")]
    train_limit: Annotated[
        int | None, Opt("Train on the first rows only.", minimum=1, metavar="ROWS")
    ]
    objective: Annotated[
        str,
        Opt(
            "dpo: rows are preferences. Rows with labels decide themselves.",
            "sft",
            metavar="sft|dpo|classification|regression",
        ),
    ]
    weight_decay: Annotated[float | None, Opt("Weight decay of AdamW (0).")]
    warmup: Annotated[float | None, Opt("Share of the steps in which the rate rises (0.03).")]
    accumulate_mean: Annotated[
        str,
        Opt("A step's loss: mean over tokens, or over batches.", "tokens", metavar="tokens|batch"),
    ]
    loss_on: Annotated[
        str, Opt("Tokens that count in the loss.", "completion", metavar="completion|all")
    ]
    eval_every: Annotated[
        int | None, Opt("Steps between evaluations during a training.", minimum=1)
    ]
    choose_on: Annotated[
        str | Path | None,
        Opt("Keep the checkpoint with the least loss on these rows.", metavar="FILE"),
    ]
    gradient_checkpointing: Annotated[bool, Opt("Less memory, more time.", False)]
    recipe: Annotated[
        str | None,
        Opt("A paper's settings where none are given.", metavar="mft-paper[:MODEL[:DOMAIN]]"),
    ]
    config: Annotated[
        str | Path | None, Opt("Further options of trl's configuration.", metavar="YAML")
    ]
    watch: Annotated[Any, Opt("Told of progress.", python_only=True)]


class TrainingOptions(
    FieldOptions, WhereOptions, _Length, _LearningRate, _SharedOptions, total=False
):
    """What every training can be told."""


class TrainingStudyOptions(
    TaskOptions,
    FieldOptions,
    WhereOptions,
    ExecutionOptions,
    _Length,
    _LearningRates,
    _SharedOptions,
    total=False,
):
    """What studies of trainings share."""

    task_limit: Annotated[int | None, Opt("Use the first N rows of each task only.", minimum=1)]
    task_batch_size: Annotated[
        str | int | None, Opt("Requests of tasks in a batch (1), or auto.", metavar="N|auto")
    ]
    setting: Annotated[
        Mapping[str, Any] | Sequence[str],
        Opt(
            "For all methods that have it; repeatable.",
            (),
            metavar="NAME=VALUE",
            common=True,
        ),
    ]
    seeds: Annotated[int, Opt("Trainings at each point.", 3, common=True)]
    keep_checkpoints: Annotated[bool, Opt("Keep every trained model.", False)]
    fresh: Annotated[bool, Opt("Discard the study that the folder holds.", False)]
