"""The stages of the pipeline, one row each; ids, the job graph, plans, cluster profiles and status all read this table.

To add a stage, add a row here, its id in ``config.ids`` and its function in ``pipeline.execute``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One step from images to a record. Its output is written to ``<runs>/<name>/<id>``."""

    name: str
    id_key: str  # its key in ``Run.ids``
    needs: tuple[str, ...] = ()  # stages whose output it reads
    revision: int = 1  # part of the id: raise it by hand when a code change alters the stage's output
    hashed_as: str = ""  # its name in the hash if that differs from ``name``
    multiprocess: bool = False  # the ranks of a torchrun or srun job share it; otherwise rank 0 does it alone
    is_task: bool = False  # it ends in a record
    resources: str = ""  # its block under ``stages`` of a cluster profile; "": its name
    label: str = "row"  # shown beside the stage in a job's title: tokenizer, extractor, training or row
    trains: str = ""  # the block of the spec that holds its training steps and batch size

    def __post_init__(self) -> None:
        object.__setattr__(self, "hashed_as", self.hashed_as or self.name)
        object.__setattr__(self, "resources", self.resources or self.name)


_TABLE = (
    Stage("tokenizer", "tokenizer_id", label="tokenizer", trains="tokenizer"),
    Stage("latents", "latents_id", needs=("tokenizer",), multiprocess=True, label="tokenizer"),
    Stage("extractor", "extractor_id", revision=2, label="extractor", trains="metrics.extractor"),
    Stage("train", "train_id", needs=("latents",), multiprocess=True, label="training", trains="train"),
    Stage("sample", "sample_id", needs=("train",), multiprocess=True),
    Stage(
        "generation", "eval_id", needs=("tokenizer", "extractor", "train", "sample"), revision=2,
        hashed_as="evaluate", is_task=True, resources="measure",
    ),
    Stage(
        "reconstruction", "eval_id", needs=("tokenizer", "extractor"), revision=2,
        is_task=True, resources="measure", label="tokenizer",
    ),
    Stage(
        "likelihood", "eval_id", needs=("latents", "train"), is_task=True, resources="measure", label="training"
    ),
    Stage("speed", "eval_id", needs=("tokenizer", "train"), revision=2, is_task=True),
)  # fmt: skip
STAGES = {stage.name: stage for stage in _TABLE}
TASKS = tuple(stage.name for stage in _TABLE if stage.is_task)  # what a record can measure
SHARED = tuple(stage.name for stage in _TABLE if not stage.is_task)  # stages that several records can share
RESOURCES = tuple(dict.fromkeys(stage.resources for stage in _TABLE))  # blocks of a cluster profile, without the table
