"""The parts of a recipe that say how networks are trained and taught; `pipeline.recipe` holds the rest."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Triple = tuple[Annotated[float, Field(allow_inf_nan=False)], ...]


class Part(BaseModel):
    """A table of the recipe: frozen, keyword-only, no unknown keys, no silent conversion of one type to another.

    later: keys that came after the first recipes were run. Where one has its default it is left out of what is dumped,
    so that stages finished before there was such a key stay fresh.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later(self, dump: Any) -> dict[str, Any]:
        fields = type(self).model_fields
        old = {
            name for name in self.later if getattr(self, name) == fields[name].get_default(call_default_factory=True)
        }
        return {name: value for name, value in dump(self).items() if name not in old}

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, values: Any) -> Any:
        # TOML and JSON have lists only; strict validation wants the tuples that keep a recipe frozen.
        if not isinstance(values, dict):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


class Augment(Part):
    """Batched augmentation; every view is a pure function of (seed, sample, epoch)."""

    later: ClassVar[frozenset[str]] = frozenset({"dihedral"})
    seed: int = Field(0, description="seed of the views, apart from the recipe's seed")
    pad_crop: Count = Field(0, description="pad by this many pixels on each side (reflected), crop back at random")
    flip: bool = Field(False, description="mirror left-right with probability 1/2")
    dihedral: bool = Field(False, description="one of the eight flips and rotations of a square; a target's too")
    brightness: Fraction = Field(0.0, description="factor drawn from [1-x, 1+x]")
    contrast: Fraction = Field(0.0, description="factor drawn from [1-x, 1+x]")
    saturation: Fraction = Field(0.0, description="factor drawn from [1-x, 1+x]; colour images only")
    cutout: Count = Field(0, description="side of one square set to the mean, in pixels")
    mixup: NonNegative = Field(0.0, description="alpha of mixup's Beta(alpha, alpha); 0 is off (arXiv 1710.09412)")
    cutmix: NonNegative = Field(0.0, description="alpha of cutmix; with mixup each is drawn half of the time")
    mix_probability: Fraction = Field(1.0, description="share of the images that are mixed at all")


class Student(Part):
    """The network to ship."""

    model: str
    weights: str = Field(
        "",
        description="start from these instead of at random; a classifier of other classes is drawn anew; 'teacher': "
        "from the teacher's",
    )


class Training(Part):
    """One training run: optimizer, schedule, precision, selection."""

    epochs: AtLeastOne = Field(30, description="passes over the training split")
    batch_size: AtLeastOne = Field(128, description="samples a step")
    optimizer: Literal["sgd", "adam", "adamw", "adam8bit", "adamw8bit"] = Field(
        "sgd", description="8bit: states of 8 bits, by bitsandbytes; both of them decouple weight decay"
    )
    lr: Positive = Field(0.1, description="peak learning rate")
    head_lr: NonNegative = Field(0.0, description="another peak rate for the classifier; 0: lr")
    freeze: tuple[str, ...] = Field((), description="module paths that are not trained, such as ['conv1', 'layer1']")
    momentum: Fraction = Field(0.9, description="SGD's momentum; Adam's first beta stays 0.9")
    nesterov: bool = True
    weight_decay: NonNegative = Field(5e-4, description="not applied to biases and normalisation")
    schedule: Literal["cosine", "constant", "step", "multistep", "plateau"] = "cosine"
    warmup_epochs: NonNegative = Field(0.0, description="linear warm-up from 0, in epochs")
    min_lr: NonNegative = Field(0.0, description="the floor of cosine and plateau")
    milestones: tuple[float, ...] = Field((), description="multistep: epochs at which lr is multiplied by gamma")
    step_epochs: Positive = Field(30.0, description="step: epochs between multiplications by gamma")
    gamma: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="step, multistep and plateau: the factor")
    patience: AtLeastOne = Field(5, description="plateau: epochs without improvement before lr falls")
    clip_norm: NonNegative = Field(0.0, description="clip the gradient's global norm; 0 is off")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="decay of averaged weights a step; 0 is off")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type")
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile for the student and teacher")
    select: Literal["best", "last"] = Field("best", description="by accuracy on the validation split")
    early_stopping: Count = Field(0, description="stop after this many epochs without improvement; 0 is off")
    augment: Augment = Field(default_factory=lambda: Augment.model_validate({}))

    @model_validator(mode="after")
    def _cross_checks(self) -> Training:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs:g} leaves nothing of epochs = {self.epochs}")
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule = 'multistep' needs milestones, such as milestones = [30, 45]")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr:g} is above lr = {self.lr:g}")
        return self


class LossTerm(Part):
    """One named term of the objective: `{ loss = "kd", weight = 0.9, temperature = 4.0 }`."""

    model_config = ConfigDict(extra="allow")

    loss: str = Field(description="its name: edgestill list losses")
    weight: NonNegative = Field(description="its share of the objective")
    student: str | tuple[str, ...] = Field("", description="feature losses: module path or paths in the student")
    teacher: str | tuple[str, ...] = Field("", description="feature losses: module path or paths in the teacher")
    warmup_epochs: NonNegative = Field(0.0, description="the weight grows from 0 over these epochs")
    until_epoch: NonNegative = Field(0.0, description="the term ends at this epoch; 0: it never does")
    adapter: Literal["auto", "none"] = Field("auto", description="auto: 1x1 convolution where shapes differ")

    @property
    def options(self) -> dict[str, Any]:
        """The loss's own keyword arguments; validated against its table row."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known(self) -> LossTerm:
        from pipeline.losses import check_term

        check_term(self.loss, self.options)
        return self


class Distill(Training):
    """How the student learns from the teacher; `control` trains the same student without it."""

    losses: tuple[LossTerm, ...] = Field(
        default_factory=lambda: (
            LossTerm.model_validate({"loss": "kd", "weight": 0.9, "temperature": 4.0}),
            LossTerm.model_validate({"loss": "cross_entropy", "weight": 0.1}),
        ),
        description="the objective: every term with its own weight",
    )
    mode: Literal["offline", "online", "self"] = Field(
        "offline", description="online: students that teach each other; self: the deepest exit teaches `exits`"
    )
    peers: tuple[Student, ...] = Field(
        (), description="online: the other students; [student] ships, and freeze and head_lr are for it alone"
    )
    exits: tuple[str, ...] = Field((), description="self: module paths after which a shallower exit is put")
    end_on_plateau: Count = Field(
        0, description="teaching ends after this many epochs without a better validation accuracy; 0: never"
    )
    teacher_outputs: Literal["auto", "live", "table"] = Field(
        "auto", description="table: the teacher's answers to every view are stored once and read from then on"
    )
    table: str = Field("", description="a folder with a table that was made elsewhere")
    control: bool = Field(True, description="train the same student, budget and seed without a teacher")
    repeats: AtLeastOne = Field(1, description="how many seeds (seed, seed+1, ...); the first one is shipped")

    @field_validator("losses")
    @classmethod
    def _some_weight(cls, losses: tuple[LossTerm, ...]) -> tuple[LossTerm, ...]:
        if sum(term.weight for term in losses) <= 0:
            raise ValueError("the weights of all terms are 0; give one term a positive weight")
        return losses

    @model_validator(mode="after")
    def _who_teaches(self) -> Distill:
        from pipeline.recipe_modes import check_distill

        check_distill(self)
        return self


class FurtherTeacher(Part):
    """One more network to learn from; trained as the first one is, or loaded."""

    model: str
    weights: str = ""
    weight: Positive = Field(1.0, description="its share in the mean of all logits; the first teacher's is 1")
    mean: Triple = Field((), description="as the first teacher's")
    std: Triple = Field((), description="as mean")


class Teacher(Part):
    """The network to learn from: trained by the recipe, or loaded from `weights` and taken as it is or trained on."""

    model: str
    weights: str = Field(
        "",
        description="a .safetensors, .pt, .pth or .th file, or torchvision:DEFAULT; empty: [teacher.train] trains it",
    )
    finetune: bool = Field(
        False, description="[teacher.train] trains `weights` on; a classifier of other classes is drawn anew"
    )
    min_accuracy: NonNegative = Field(
        0.0, description="refuse a teacher below this on the validation split: top-1, or the task's metric"
    )
    check: Literal["refuse", "warn"] = Field(
        "refuse", description="warn: say what is wrong with the teacher and go on, as --smoke does after one epoch"
    )
    mean: Triple = Field((), description="of its own preprocessing, on the scale 0 to 1; empty: the training data's")
    std: Triple = Field((), description="as mean")
    train: Training = Field(default_factory=lambda: Training.model_validate({}))
    others: tuple[FurtherTeacher, ...] = Field((), description="[[teacher.others]]: the logits of all are averaged")

    @property
    def trained(self) -> bool:
        """Whether [teacher.train] trains it."""
        return not self.weights or self.finetune

    @model_validator(mode="after")
    def _something_to_finetune(self) -> Teacher:
        if self.finetune and not self.weights:
            raise ValueError("finetune = true needs weights to begin with; give some or leave finetune out")
        return self

    @model_validator(mode="after")
    def _mean_and_std(self) -> Teacher:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std go together and have one value a channel")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std = {list(self.std)} must be positive")
        return self


class Generation(Part):
    """A network between teacher and student: taught by the one before it, it teaches the next one."""

    model: str
    weights: str = Field("", description="start from these instead of at random")
    distill: dict[str, Any] = Field(default_factory=dict, description="what differs from [distill]")
