"""The options of a fit: one frozen object, validated once, here."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from batch_explain.errors import OptionError
from batch_explain.options import SCHEDULERS, RunOptions

SURROGATES, MODELS = ("sdk", "faithful"), ("lightgbm", "linear")
DEFAULT_MAX_TRAIN_ROWS = 100_000
DEFAULT_AUGMENTATIONS = 10  # MimicExplainer's own
_PATHS = ("model", "train", "output", "test")


@dataclass(frozen=True)
class FitOptions:
    """What a fit reads, writes and makes.

    Parameters
    ----------
    model : str
        The fitted pipeline: whatever ``run`` takes as its model.
    train : str
        Parquet file, folder or glob of the rows that the model was trained on, or of rows like them.
    label : str
        The column with the true answer; it is no feature.
    output : str
        A folder that is empty or does not exist.
    test : str or None
        Parquet of the rows that are explained and on which the surrogate is judged; None: rows of ``train`` that are
        held out.
    task : str or None
        ``classification`` or ``regression``, where the model's own answer is to be checked.
    surrogate : str
        ``sdk``: what azureml-interpret makes (of AutoML pipelines by itself). ``faithful``: the model's own margins or
        log-probabilities are learned.
    direct : bool
        No surrogate: the model's own trees, where it is a sum of trees.
    surrogate_model : str
        ``lightgbm`` or ``linear``.
    surrogate_args : tuple of (str, Any)
        Arguments of the surrogate's own model: ``explainable_model_args`` in the SDK.
    augment_data : bool
        The SDK's: make more training rows by permuting columns, at random.
    max_augmentations : int
        The SDK's ``max_num_of_augmentations``.
    categorical_features : tuple of str
        Engineered features that hold codes of categories.
    shap_values_output : str
        ``default``: margins. ``probability``: rescaled, for dense rows of several classes.
    max_train_rows : int
        More rows than so many are sampled.
    scheduler : str or None
        As in ``run``, for the rows that are explained; None: ``sync``, and ``processes`` for more than 100,000 rows.
    trust : tuple of str
        Names that the model's pickle may use beside those on the list.
    overwrite : bool
        Remove the fit that is in ``output`` first.

    Raises
    ------
    OptionError
        If a value is not one of these, or two contradict each other.
    """

    model: str
    train: str
    label: str
    output: str
    test: str | None = None
    task: str | None = None
    surrogate: str = "sdk"
    direct: bool = False
    surrogate_model: str = "lightgbm"
    surrogate_args: tuple[tuple[str, Any], ...] = ()
    augment_data: bool = False
    max_augmentations: int = DEFAULT_AUGMENTATIONS
    categorical_features: tuple[str, ...] = ()
    shap_values_output: str = "default"
    max_train_rows: int = DEFAULT_MAX_TRAIN_ROWS
    scheduler: str | None = None
    trust: tuple[str, ...] = ()
    overwrite: bool = False

    @classmethod
    def create(cls, **values: Any) -> "FitOptions":
        """Build options from what people write: paths, comma lists, ``NAME=VALUE``, numbers as text."""
        values = {name: value for name, value in values.items() if value is not None}
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise OptionError(f"Unknown option '{unknown[0]}'. Known options are {', '.join(sorted(known))}.")
        for name in ("model", "train", "label", "output"):
            if not values.get(name):
                raise OptionError(f"--{name} is missing: a fit needs model, train, label and output.")
        for name in _PATHS:
            if name in values:
                if not isinstance(values[name], str | os.PathLike):
                    raise OptionError(
                        f"--{name} is an object of type {type(values[name]).__name__}. Save it and pass the path: the "
                        "record of a fit names its files with their checksums."
                    )
                values[name] = os.fspath(values[name])
        values["surrogate_args"] = _arguments(values.get("surrogate_args", ()))
        categories = values.get("categorical_features", ())
        values["categorical_features"] = tuple(
            categories.split(",") if isinstance(categories, str) else map(str, categories)
        )
        values["trust"] = RunOptions.trusted(values.get("trust", ()))
        for name in ("max_train_rows", "max_augmentations"):
            if name in values:
                values[name] = _whole(name, values[name])
        return cls(**values)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("surrogate", SURROGATES),
            ("surrogate_model", MODELS),
            ("shap_values_output", ("default", "probability")),
            ("task", ("classification", "regression", None)),
            ("scheduler", (*SCHEDULERS, None)),
        ):
            if getattr(self, name) not in allowed:
                listed = ", ".join(str(value) for value in allowed if value is not None)
                raise OptionError(f"--{name.replace('_', '-')} is '{getattr(self, name)}'. Use one of {listed}.")
        for name in ("augment_data", "overwrite", "direct"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}. Use true or false.")
        of_surrogates = (
            "surrogate", "surrogate_model", "surrogate_args", "augment_data", "max_augmentations",
            "categorical_features", "shap_values_output",
        )  # fmt: skip
        if self.direct and any(getattr(self, name) != getattr(type(self), name) for name in of_surrogates):
            raise OptionError(
                "--direct explains the model by its own trees, without a surrogate. Leave the surrogate's options out."
            )
        if self.surrogate == "faithful" and (self.augment_data or self.shap_values_output != "default"):
            raise OptionError(
                "--augment-data and --shap-values-output belong to the SDK's surrogate: a faithful one learns margins "
                "on the rows that are there. Leave them out, or choose --surrogate sdk."
            )
        if self.surrogate_model == "linear" and (self.categorical_features or self.shap_values_output != "default"):
            raise OptionError(
                "--categorical-features and --shap-values-output belong to a LightGBM surrogate. Leave them out, or "
                "choose --surrogate-model lightgbm."
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """``surrogate_args`` as a dict."""
        return dict(self.surrogate_args)

    def to_json(self) -> dict[str, Any]:
        """For ``fit.json``."""
        return {**dataclasses.asdict(self), "surrogate_args": self.arguments}


def _arguments(given: Any) -> tuple[tuple[str, Any], ...]:
    pairs: list[tuple[str, Any]] = []
    parts = given.items() if isinstance(given, Mapping) else [given] if isinstance(given, str) else given
    for part in parts if isinstance(parts, Iterable) else [parts]:
        name, value = part.partition("=")[::2] if isinstance(part, str) else part
        if not str(name).isidentifier() or (isinstance(part, str) and "=" not in part):
            raise OptionError(f"--surrogate-arg is {part!r}. Write NAME=VALUE, such as num_leaves=63.")
        pairs.append((str(name), _value(value) if isinstance(part, str) else value))
    names = [name for name, _ in pairs]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"--surrogate-arg names '{doubled[0]}' twice. Give each argument once.")
    return tuple(pairs)


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _whole(name: str, value: Any) -> int:
    try:
        number = int(str(value).replace("_", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise OptionError(f"--{name.replace('_', '-')} is '{value}'. Use a whole number of at least 1.")
    return number
