"""Settings: a recipe (TOML), then environment, then flags, each stronger than the one before.

A recipe has one table per component, with tables in it by topic. Each component's pydantic model stands beside the code
it configures; this module has the tables that every service reads, and the loader. In a recipe `optimizer.beta1 = 0.8`
under `[learner]`, in the environment `ROUTERSHIFT_LEARNER__OPTIMIZER__BETA1=0.8` and as a flag
`--set learner.optimizer.beta1=0.8` mean the same.

Long because it holds the tables that every service reads beside the one loader that reads them.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shared import redis_url
from shared.errors import InvalidInputError, NotFoundError
from shared.models.folder import check_folder
from shared.models.hub import SCHEME, fetch, parse_model
from shared.sampling import MAX_SAMPLES, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TEMPERATURE, MIN_TEMPERATURE
from shared.sources import is_file

ENV_PREFIX = "ROUTERSHIFT_"
SERVICES = ("curriculum", "generation", "reward", "learner")
_VERIFIERS = (("reward", "verifiers", "*"), ("data", "train", "*", "verifier"), ("data", "eval", "*", "verifier"))
# What a recipe names relative to itself, beside its model, and when a value that may be more is a path. "*": any name
# or number.
_PATHS: Mapping[tuple[str, ...], Callable[[str], bool]] = {
    **{(*verifier, key): (lambda value: True) for verifier in _VERIFIERS for key in ("file", "model")},
    **{("data", part, "*", "source"): is_file for part in ("train", "eval")},
    **{("data", part, "*", "chat_template"): lambda value: value not in ("on", "off") for part in ("train", "eval")},
}
_OTHERS = (*SERVICES, "data", "supervisor")  # tables that a component leaves to others where they are not its own


class Table(BaseModel):
    """Base of every settings table: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Table):
    """Where a service listens. Loopback unless told otherwise."""

    host: Annotated[str, AfterValidator(lambda host: host.strip("[]"))] = Field(
        "127.0.0.1", description="IPv4 or IPv6 address, or name, where gRPC and metrics are served; 0.0.0.0 or ::: all"
    )
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    drain_seconds: float = Field(20.0, gt=0, description="how long SIGTERM waits for work in progress")
    start_seconds: float = Field(
        180.0, gt=0, description="time from the start of the process to serving; then it is ended"
    )
    watchdog_seconds: float = Field(30.0, gt=0, description="standstill of the event loop that ends the process")
    health_port: int | None = Field(
        None, ge=0, le=65535, description="port where health alone answers in clear text, for probes that know no TLS"
    )
    reflection: bool = Field(True, description="whether the server tells callers its schema (gRPC reflection)")
    max_request_bytes: int = Field(128 << 20, ge=1 << 10, le=2**31 - 1, description="longest message of a caller")
    max_calls: int = Field(1024, ge=1, description="calls in progress above which more are refused")
    calls_per_second: float | None = Field(
        None, gt=0, description="calls that a caller (a token, or all who show none) may begin; default: no limit"
    )


class AccessSettings(Table):
    """The table [access]: who may call a service, and what the service shows as a client of others.

    All are files, certificates and keys in PEM, that are read again when they change.
    """

    certificate: Path | None = Field(
        None, description="of this service, with its chain: its server speaks TLS, and its clients show it to others"
    )
    key: Path | None = Field(None, description="of the certificate")
    authority: Path | None = Field(None, description="certificates that sign those of others: callers then speak TLS")
    mutual: bool = Field(False, description="whether the server refuses a client without certificate of the authority")
    server_name: str | None = Field(
        None, description="name in the certificates of servers; default: that in their address"
    )
    tokens: Path | None = Field(
        None, description="tokens that the server takes, lines of ROLE[,ROLE] TOKEN; default: it asks for none"
    )
    token: Path | None = Field(None, description="the token that this service shows to other servers")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; set both or none")
        if self.mutual and not (self.certificate and self.authority):
            raise ValueError("mutual needs certificate, key and authority")
        return self


# A list of texts, which environment and flags write as one,two.
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: [text for text in value.split(",") if text] if isinstance(value, str) else value),
]
# Texts that end a response. Environment and flags can say one.
StopTexts = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)], ...],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


class RunSettings(Table):
    """What all services of one run must agree on."""

    id: str = Field(
        default_factory=lambda: datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S"),
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="name of the run: prefix of its Redis keys and name of its folder",
    )
    folder: Path = Field(Path("runs"), description="parent of the folders of runs")
    model: Path | str = Field(
        description="model folder in the Hugging Face format, in a recipe relative to the recipe; or OWNER/NAME on the "
        "Hugging Face Hub, where no folder OWNER is there"
    )
    model_revision: str = Field(
        "", description="branch, tag or commit of a model on the Hugging Face Hub; default: its main branch"
    )
    task: str | None = Field(None, description="the task that prompts come from; default: the tables [[data.train]]")
    seed: int = Field(0, ge=0, description="start of every random sequence")
    steps: int = Field(100, ge=1, description="optimizer batches, each of which publishes a version")
    groups_per_step: int = Field(32, ge=1, description="prompts in an optimizer batch")
    max_staleness: int = Field(2, ge=0, description="versions that a trajectory may be behind when it is trained on")
    weights_transfer: Literal["files", "broadcast"] = Field(
        "files", description="how new weights reach generation: from a folder that both see, or over the network too"
    )
    evaluate_every: int = Field(20, ge=0, description="versions between evaluations; 0: first and last only")
    trackers: Texts = Field(
        (), description="experiment trackers that get every record beside the run's folder, as in one,two"
    )

    @field_validator("model", mode="before")
    @classmethod
    def _folder_or_name(cls, value: Any) -> Any:
        return parse_model(value, Path()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _revision_is_of_a_name(self) -> Self:
        if self.model_revision and isinstance(self.model, Path):
            raise ValueError(
                f"model_revision is {self.model_revision!r}, and model is the folder {self.model}; only OWNER/NAME on "
                "the Hugging Face Hub has revisions: take it out"
            )
        return self

    @property
    def path(self) -> Path:
        """Folder of logs, weights, checkpoints and records of this run."""
        return self.folder / self.id

    def model_folder(self, *, weights: bool = True) -> Path:
        """The model folder; of a name on the Hugging Face Hub, that in its cache. Raises as `hub.fetch` does.

        Args:
            weights: False where config, tokenizer and chat template are enough.
        """
        return self.model if isinstance(self.model, Path) else fetch(self.model, self.model_revision, weights=weights)

    def require_model(self) -> Path:
        """The model folder, after what can be told without loading it was checked.

        Raises:
            NotFoundError: it is none, or lacks a file.
            CorruptDataError: a file in it is broken.
            PreconditionError, MissingDependencyError: it is on the Hugging Face Hub, and cannot be fetched.
        """
        folder = self.model_folder()
        if (folder / "config.json").is_file():
            check_folder(folder)
            return folder
        what = "no config.json there" if folder.is_dir() else "no such folder"
        raise NotFoundError(
            f"run.model is {folder}; {what}: expected a Hugging Face model folder, or a name on the Hugging Face Hub"
        )

    @property
    def weights_root(self) -> Path:
        return self.path / "weights"

    @property
    def tickets(self) -> int:
        """Groups in flight that keep every trajectory within `max_staleness`, if groups finish in order."""
        return (self.max_staleness + 1) * self.groups_per_step


class RolloutSettings(Table):
    """How the responses that the learner trains on are sampled. Those of evaluation have a table of their own.

    A token's log-prob is that under the distribution that it was sampled from, and the learner computes its own at the
    same temperature. Their ratio corrects what the sampler's weights and kernels differ in. It cannot correct a sampler
    that leaves out tokens, so what would do that is refused here.
    """

    n: int = Field(8, ge=2, le=MAX_SAMPLES, description="responses to each prompt: the size of a group")
    max_tokens: int = Field(24, ge=1, description="longest response")
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="of the policy that samples and of the one trained"
    )
    stop: StopTexts = Field((), description="texts that end a response, which keeps them")
    top_p: float = Field(1.0, description="1 alone: training needs every token to be possible")
    top_k: int = Field(0, description="0 alone, for the same reason")
    min_p: float = Field(0.0, description="0 alone, for the same reason")
    min_tokens: int = Field(0, description="0 alone, for the same reason: it forbids to end")

    @field_validator("top_p", "top_k", "min_p", "min_tokens")
    @classmethod
    def _leaves_out_no_token(cls, value: float, info: ValidationInfo) -> float:
        name = str(info.field_name)
        full = cls.model_fields[name].default
        if value != full:
            raise ValueError(
                f"rollouts take {full} alone: a token that is never sampled has no importance ratio, so the loss would "
                f"be biased against it, and the sampler's log-probs would be those of fewer tokens than the learner's; "
                f"lower rollout.temperature, or set curriculum.evaluation.sampling for evaluation"
            )
        return value


class RedisSettings(Table):
    """How services reach Redis."""

    url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="REDIS_URL in the environment wins over a recipe; rediss:// speaks TLS",
    )
    username: str | None = Field(None, description="ACL user; default: that in the URL, or Redis' own")
    password_file: Path | None = Field(None, description="the user's password, read for every new connection")
    authority: Path | None = Field(None, description="certificates to trust for rediss://; default: the system's")
    certificate: Path | None = Field(None, description="to show to Redis, where it asks for one")
    key: Path | None = Field(None, description="of the certificate")
    timeout_seconds: float = Field(10.0, gt=0, description="deadline of one command")
    connect_seconds: float = Field(5.0, gt=0, description="how long a start waits for Redis to answer")
    outage_seconds: float = Field(
        60.0, gt=0, le=240, description="how long a service rides out a Redis that does not answer before it ends"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if wrong := redis_url.problem(self.url.get_secret_value()):
            raise ValueError(f"url, which REDIS_URL sets, {wrong}")
        url = urlsplit(self.url.get_secret_value())
        if (self.authority or self.certificate) and url.scheme != "rediss":
            raise ValueError("authority and certificate are for a URL that begins with rediss://")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; set both or none")
        if self.username and not self.password_file:
            raise ValueError("username needs password_file")
        if self.password_file and (url.username or url.password):
            raise ValueError("the URL and password_file both name a user or a password; take them out of the URL")
        return self


class StreamSettings(Table):
    """How consumers behave. `idle` is the age at which a silent consumer's entries go to another."""

    max_bytes: int = Field(256 << 20, ge=1 << 16, description="bytes in one stream at which its producers wait")
    inline_bytes: int = Field(
        32 << 10, ge=1 << 8, description="payload above which it lies beside its stream, under a key of its own"
    )
    max_entry_bytes: int = Field(
        16 << 20, ge=1 << 10, le=256 << 20, description="payload above which it goes in chunks of this size"
    )
    block_seconds: float = Field(0.5, gt=0, le=5, description="longest wait of one read")
    idle_seconds: float = Field(30.0, gt=0, description="silence after which an entry is taken over")
    max_deliveries: int = Field(5, ge=1, description="deliveries after which an entry goes to the dead letters")
    consumer: str = Field("", description="name among the consumers of a group; default: the host's name")
    lease_seconds: float = Field(
        15.0, gt=0, description="silence after which another machine may take over a run's learner or curriculum"
    )


class BaseSettings(Table):
    """What each service reads beside its own table."""

    run: RunSettings
    rollout: RolloutSettings = RolloutSettings()
    redis: RedisSettings = RedisSettings()
    streams: StreamSettings = StreamSettings()
    access: AccessSettings = AccessSettings()


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load(
    model: type[SettingsT], recipe: Path | None, environment: Mapping[str, str], flags: Iterable[str] = ()
) -> SettingsT:
    """Reads, merges and validates the settings of one component.

    Args:
        model: the tables wanted. Tables of other services are left to them.
        recipe: a TOML file, or None for none.
        environment: usually os.environ; `ROUTERSHIFT_TABLE__KEY`, and REDIS_URL.
        flags: `table.key=value` each.

    Raises:
        NotFoundError: there is no such recipe.
        InvalidInputError: not TOML, an unknown table or key (names the nearest), or a value out of range.
    """
    data = _read(recipe) if recipe else {}
    for source, path, value in (*_from_environment(environment), *_from_flags(flags, model)):
        _assign(data, source, path, value)
    _name_verifiers(data)
    others = set(_OTHERS) - set(model.model_fields)
    try:
        return model.model_validate({table: keys for table, keys in data.items() if table not in others})
    except ValidationError as error:
        raise InvalidInputError(_explain(error, model)) from None


def redis_of(environment: Mapping[str, str], **changes: Any) -> RedisSettings:
    """The table [redis] for a command that knows no recipe.

    Raises:
        InvalidInputError: as `load`.
    """
    named = {path[1]: value for _, path, value in _from_environment(environment) if path[0] == "redis" and path[1:]}
    try:
        return RedisSettings.model_validate(named | changes)
    except ValidationError as error:
        raise InvalidInputError(f"table 'redis': {_explain(error, RedisSettings)}") from None


def _read(recipe: Path) -> dict[str, Any]:
    if recipe.is_dir():
        inside = sorted(file.name for file in recipe.glob("*.toml"))
        hint = f"did you mean {recipe / inside[0]}?" if inside else "recipes are TOML files, see deploy/recipes"
        raise InvalidInputError(f"recipe {recipe} is a folder; {hint}")
    if not recipe.is_file():
        raise NotFoundError(f"recipe {recipe} does not exist; recipes are TOML files, see deploy/recipes")
    try:
        data = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(f"recipe {recipe} is not TOML: {error}") from None
    for path, is_path in _PATHS.items():
        for table in _tables(data, path[:-1]):
            value = table.get(path[-1])
            if isinstance(value, str) and is_path(value):
                table[path[-1]] = str(recipe.parent / value)
    run = data.get("run")
    if isinstance(run, dict) and isinstance(run.get("model"), str):
        try:
            model = parse_model(run["model"], recipe.parent)
        except ValueError as error:
            raise InvalidInputError(f"recipe {recipe}: run.model: {error}") from None
        run["model"] = model if isinstance(model, Path) else SCHEME + model
    return data


def _tables(data: Any, path: Sequence[str]) -> list[dict[str, Any]]:
    """The tables of a recipe at a path in which "*" is any name, or any table of an array."""
    if isinstance(data, list) and path and path[0] == "*":
        return [table for value in data for table in _tables(value, path[1:])]
    if not isinstance(data, dict):
        return []
    if not path:
        return [data]
    inside = data.values() if path[0] == "*" else [data.get(path[0])]
    return [table for value in inside for table in _tables(value, path[1:])]


def _assign(data: dict[str, Any], source: str, path: list[str], value: str) -> None:
    """Sets one key from the environment or a flag. A number in its path counts the tables of an array from 0."""
    table: Any = data
    for depth, name in enumerate(path, 1):
        named = ".".join(path[:depth])
        is_last = depth == len(path)
        inner: Any = value if is_last else [] if path[depth].isdecimal() else {}
        if isinstance(table, list):
            if not name.isdecimal() or int(name) > len(table):
                raise InvalidInputError(
                    f"{source}: {named.rpartition('.')[0]} is an array of {len(table)} tables; expected the number of "
                    f"one, counted from 0, as 0 to {len(table)} for {name!r}"
                )
            if int(name) == len(table):
                table.append(inner)
            elif is_last:
                table[int(name)] = value
            table = table[int(name)]
        elif is_last:
            table[name] = value
        else:
            table = table.setdefault(name, inner)
        if not is_last and not isinstance(table, dict | list):
            raise InvalidInputError(f"{source}: {named} is a single value in the recipe; expected a table [{named}]")


def _name_verifiers(data: dict[str, Any]) -> None:
    """Moves a verifier that a data table has in it to [reward.verifiers], where the reward service finds it.

    `verifier = { kind = "math", judging_seconds = 2 }` in the first [[data.train]] becomes
    [reward.verifiers.data-train-0] and that name in its place. Tables that are equal are one verifier.
    """
    tables = data.get("data")
    if not isinstance(tables, dict):
        return
    named: list[tuple[str, dict[str, Any]]] = []
    for part in ("train", "eval"):
        sources = tables.get(part)
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            verifier = source.get("verifier") if isinstance(source, dict) else None
            if not isinstance(verifier, dict):
                continue
            if not verifier.keys() & {"kind", "file"}:
                raise InvalidInputError(
                    f"setting 'data.{part}.{index}.verifier' is a table without kind or file; set "
                    f"data.{part}.{index}.verifier.kind, as math, or name a table of [reward.verifiers]"
                )
            name = next((name for name, known in named if known == verifier), f"data-{part}-{index}")
            named.append((name, verifier))
            source["verifier"] = name
            reward = data.setdefault("reward", {})
            if isinstance(reward, dict) and isinstance(known := reward.setdefault("verifiers", {}), dict):
                known.setdefault(name, verifier)


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a table: also of one that may be left out, and of those of an array; None for other keys."""
    for part in (annotation, *(get_args(annotation) if get_origin(annotation) is not dict else ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def is_array(annotation: Any) -> bool:
    """Whether a key is an array of tables, each [[table.key]]."""
    return get_origin(annotation) in (list, tuple) and table_of(annotation) is not None


def _from_environment(environment: Mapping[str, str]) -> Iterable[tuple[str, list[str], str]]:
    for name, value in sorted(environment.items()):
        if name.startswith(ENV_PREFIX):
            path = name.removeprefix(ENV_PREFIX).lower().split("__")
            if len(path) < 2 or not all(path):
                raise InvalidInputError(f"environment variable {name} names no key; expected {ENV_PREFIX}TABLE__KEY")
            yield name, path, value
    if url := environment.get("REDIS_URL"):
        yield "REDIS_URL", ["redis", "url"], url


def _from_flags(flags: Iterable[str], model: type[BaseModel]) -> Iterable[tuple[str, list[str], str]]:
    for flag in flags:
        name, equals, value = flag.partition("=")
        path = name.split(".")
        if not equals:
            raise InvalidInputError(f"--set {flag!r} is not an assignment; expected --set table.key=value")
        if len(path) < 2:
            raise InvalidInputError(f"--set {flag!r} names no table; {_in_its_table(name, value, model)}")
        if not all(path):
            raise InvalidInputError(f"--set {flag!r} has a part without a name; expected --set table.key=value")
        yield f"--set {name}", path, value


def _in_its_table(name: str, value: str, model: type[BaseModel]) -> str:
    """How to write an assignment that names a key alone."""
    keys = _keys(model)
    if name in keys:
        inside = next(key for key in keys if key.startswith(f"{name}."))
        return f"{name} is a table; set one of its keys, as --set {inside}=..."
    found = [key for key in keys if key.rpartition(".")[2] == name] or [_nearest(name, model)]
    return f"did you mean {' or '.join(f'--set {key}={value}' for key in found[:3])}?"


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first fault: the key, the value, and the nearest known key or what was expected."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; did you mean {_nearest(name, model)!r}?{more}"
    if fault["type"] == "tuple_type" and isinstance(fault["input"], Mapping):
        return f"setting {name!r} is one table; write [[{name}]], of which there may be several{more}"
    if fault["type"] == "model_type":
        inside = [key for key in _keys(model) if key.startswith(f"{_without_numbers(name)}.")]
        return f"setting {name!r} is {fault['input']!r}: it is a table; set one of its keys, as {inside[0]!r}{more}"
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):  # raised by a table as a whole
        return f"setting {name!r}: {fault['ctx']['error']}{more}" if name else f"{fault['ctx']['error']}{more}"
    # A whole table would be long, and may hold a secret.
    value = "" if fault["type"] == "missing" or isinstance(fault["input"], Mapping) else f" is {fault['input']!r}:"
    said = fault["ctx"]["error"] if fault["type"] == "value_error" else fault["msg"].lower()
    return f"setting {name!r}{value} {said}{more}"


def _nearest(name: str, model: type[BaseModel]) -> str:
    """The known key or table most like `name`.

    A key in another table of the same component counts by its own name or by its whole path: `learner.gamma_mn` and
    `learner.router_shift_gamma_min` both find `learner.router_shift.gamma_min`. Between equals, that in the table
    which was named wins.
    """
    named = name.rpartition(".")[0]  # with the number of a table in an array
    name = _without_numbers(name)
    table, _, key = name.rpartition(".")
    component, _, below = name.partition(".")
    known = [*_keys(model), *(_OTHERS if not table else ())]

    def likeness(candidate: str) -> tuple[float, bool]:
        inside, _, last = candidate.rpartition(".")
        pairs = [(key, last)] if last else []
        if candidate.partition(".")[0] == component:
            pairs.append((below.replace(".", "_"), candidate.partition(".")[2].replace(".", "_")))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs), inside == table

    siblings = [candidate for candidate in known if candidate.rpartition(".")[0] == table]
    related = [
        candidate
        for candidate in known
        if (candidate.startswith(f"{component}.") if table else candidate.rpartition(".")[2] == key)
    ]
    nearest: str = max([*siblings, *related] or known, key=likeness)
    return f"{named}.{nearest.rpartition('.')[2]}" if nearest.rpartition(".")[0] == table != named else nearest


def _without_numbers(name: str) -> str:
    """The name of a key without the numbers that count the tables of an array."""
    return ".".join(part for part in name.split(".") if not part.isdecimal())


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all keys and tables of a model, each table before its keys."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if inner := table_of(field.annotation):
            found += _keys(inner, f"{prefix}{name}.")
    return found
